"""A build that is killed with SIGKILL, again and again, ends with the same artifact, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import small
from offramp.errors import ArtifactError
from offramp.storage.arrays import load_arrays
from offramp.training.checkpoint import CHECKPOINT_FORMAT, VERSION

BATCHES, EPOCHS, STEPS = 12, 6, 4
FINISHED = 0

CHILD = f"""
import os, sys, time
import torch
torch.set_num_threads(1)
import offramp, small
from offramp.data import row_store
from offramp.training import checkpoint, head_trainer

work, artifact, log, stalled = sys.argv[1:]
row_store._COMMIT_EVERY = checkpoint._SAVE_EVERY = 0.0
events = os.open(log, os.O_WRONLY | os.O_CREAT)


def counted(owner, name, mark, pause):
    original = getattr(owner, name)

    def counting(*arguments):
        os.write(events, mark)
        time.sleep(pause)
        return original(*arguments)

    setattr(owner, name, counting)


class Slow(list):
    # a little slow; in the phase that is to be killed so slow at its end that it never gets there
    def __init__(self, batches, phase):
        super().__init__(batches)
        self.phase = phase

    def __iter__(self):
        for i in range(len(self)):
            time.sleep(60 if self.phase == stalled and i == len(self) - 2 else 0.01)
            yield self[i]


counted(offramp.ExitNetwork, "features", b"f", 0)
counted(offramp.ExitNetwork, "answers", b"a", 0)
counted(head_trainer.HeadTrainer, "_step", b"s", 0.01)
save = checkpoint.save


def stalling(path, key, modules, optimiser, epoch):
    save(path, key, modules, optimiser, epoch)
    time.sleep(60 if stalled == "training" and epoch == {EPOCHS} - 1 else 0)


checkpoint.save = stalling
batches = [small.loader(count={BATCHES} * 16, seed=seed, size=16) for seed in (1, 5)]
net = offramp.attach_exits(small.model(), batches[0][0][0])
config = offramp.TrainConfig(epochs={EPOCHS}, batch_size={BATCHES} * 16 // {STEPS})
offramp.train_exits(net, Slow(batches[0], "features"), config=config, work_dir=work)
records = offramp.record_outputs(net, Slow(batches[1], "records"), work_dir=work)
costs = offramp.measure_cost(net)
frontier = offramp.search(records, costs, tradeoffs=[0.5, 0.9])
offramp.save(artifact, net, frontier, costs, records={{"search": records}})
"""


class Build:
    """Runs of the child in one folder."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.work, self.runs = folder, folder / "work", 0
        (folder / "child.py").write_text(CHILD)

    def start(self, stalled):
        self.runs += 1
        here = str(Path(small.__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r}); exec(open('child.py').read())"
        command = [sys.executable, "-c", code, "work", "artifact", f"log{self.runs}", stalled]
        with (self.folder / f"errors{self.runs}").open("w") as errors:
            return subprocess.Popen(command, cwd=self.folder, stderr=errors)

    def errors(self):
        return (self.folder / f"errors{self.runs}").read_text()

    def events(self):
        """(batches cached, steps trained, batches recorded) in the last run."""
        log = (self.folder / f"log{self.runs}").read_bytes()
        return log.count(b"f"), log.count(b"s"), log.count(b"a")

    def run_to_the_end(self):
        child = self.start("")
        assert child.wait(120) == FINISHED, self.errors()

    def kill_in(self, phase, done, least):
        """Start, kill when ``done()`` has reached ``least``; returns how far it was."""
        child = self.start(phase)
        try:
            end = time.monotonic() + 120
            while done() < least:
                assert child.poll() is None, self.errors()
                assert time.monotonic() < end, "the child does not get there"
                time.sleep(0.003)
        finally:
            child.kill()  # SIGKILL
            child.wait()
        return done()

    def batches(self, kind):
        found = [json.loads(path.read_text()) for path in self.work.glob(f"{kind}-*/**/progress.json")]
        return max((state["progress"]["batches"] for state in found), default=0)

    def epochs(self):
        for path in self.work.glob("heads-*.safetensors"):
            try:
                return load_arrays(path, CHECKPOINT_FORMAT, VERSION)[1]["epoch"]
            except ArtifactError:  # not there any more: it is being replaced
                continue
        return 0


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    build = Build(tmp_path_factory.mktemp("whole") / "build")
    build.run_to_the_end()
    assert build.events() == (BATCHES, EPOCHS * STEPS, BATCHES)
    return contents(build.folder / "artifact")


def test_a_killed_build_resumes_and_ends_alike(tmp_path, uninterrupted):
    build = Build(tmp_path / "build")
    cached = build.kill_in("features", lambda: build.batches("features"), 3)
    assert 3 <= cached < BATCHES
    trained = build.kill_in("training", build.epochs, 2)
    assert build.events()[0] == BATCHES - cached
    assert 2 <= trained < EPOCHS
    recorded = build.kill_in("records", lambda: build.batches("records"), 4)
    assert build.events()[:2] == (0, (EPOCHS - trained) * STEPS)
    assert 4 <= recorded < BATCHES
    assert not (build.folder / "artifact").exists()
    build.run_to_the_end()
    assert build.events() == (0, 0, BATCHES - recorded)
    assert contents(build.folder / "artifact") == uninterrupted
    assert len(uninterrupted) == 6
