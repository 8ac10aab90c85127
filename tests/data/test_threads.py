from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import offramp
import small
from offramp.data import threads, threads_for

CODE = """
import resource, torch, offramp
from torch import nn
torch.manual_seed(0)
blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(4)]
top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, *top)
x, y = torch.randn(256, 3, 12, 12), torch.arange(256) % 4
net = offramp.attach_exits(model.eval(), x[:2])
loader = [(x[i:i + 64], y[i:i + 64]) for i in range(0, 256, 64)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=6, batch_size=64), progress=False)
offramp.record_outputs(net, loader, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
"""
BUSY = "while True: pass"


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, as PyTorch chooses them by itself."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several")
def test_little_work_is_done_by_one_thread(caplog: pytest.LogCaptureFixture) -> None:
    threads._TOLD.clear()
    with caplog.at_level(logging.INFO, "offramp"):
        for _ in range(2):
            with threads_for(1e6, "A small step"):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 2
    assert [record.message for record in caplog.records] == [
        "A small step: one thread; 1 million multiply-accumulates a call are too few to share"
    ]
    with pytest.raises(ZeroDivisionError), threads_for(1e6, "A small step"):
        _ = 1 / 0
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("several")
def test_an_engine_says_when_one_thread_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    threads._TOLD.clear()
    net = small.network()
    with caplog.at_level(logging.INFO, "offramp"):
        for _ in range(2):
            offramp.Engine(net)
    assert torch.get_num_threads() == 2
    (message,) = [record.message for record in caplog.records if record.name == "offramp"]
    assert "Engine: 0.0" in message
    assert "torch.set_num_threads(1) is faster where other processes run" in message


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("macs", [threads.SMALL, 1e12, float("inf")])
def test_much_work_is_shared(macs: float) -> None:
    with threads_for(macs, "A large step"):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("several")
def test_the_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(5)
    with threads_for(1e6, "A small step"):
        assert torch.get_num_threads() == 5
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(1e6, "A small step"):
        assert torch.get_num_threads() == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_busy_neighbour_does_not_multiply_the_work(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in threads._SET_BY_USER}

    def seconds() -> float:
        out = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        return float(out.stdout)

    alone = seconds()
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
    try:
        beside = seconds()
    finally:
        for each in neighbours:
            each.kill()
            each.wait()
    assert beside < 2.5 * alone + 0.5
