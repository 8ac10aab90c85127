"""Artifacts: what goes in comes out, what is damaged is refused, and what was there stays until the end."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kills
import offramp
import small
from offramp.artifacts import artifact, manifest, tensors
from offramp.artifacts.artifact import replace_frontier
from offramp.artifacts.manifest import load_records, read_manifest
from offramp.core.certificate import Expected
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.frontier import Frontier
from offramp.errors import ArtifactError, InputError, StorageError
from offramp.heads import registry
from offramp.heads.registry import register_head
from offramp.storage import atomic, system
from offramp.storage.documents import canonical

FILES = {"manifest.json", "heads.safetensors", "example.safetensors", "frontier.json", "costs.json"}


def frontier_of(costs, position="blocks.0", head="linear", threshold=0.5):
    expected = Expected(0.5, costs.full / 2, 0.75, costs.full, 96)
    config = ExitConfig((ExitChoice(position, head, threshold),), 0.9, expected)
    return Frontier([config], {0.9: config}, {"method": "by hand"})


class Made:
    """A network, and all that is saved with it."""

    def __init__(self, kind=small.Picture, position="blocks.0", **options):
        self.kind, self.model = kind, small.model(kind)
        self.net = offramp.attach_exits(
            self.model, small.few(small.inputs(kind)), **{"heads": small.HEADS, **options}
        )
        self.costs = offramp.measure_cost(self.net)
        self.frontier = frontier_of(self.costs, position)
        self.records = offramp.record_outputs(self.net, small.loader(kind))

    def save(self, path, **options):
        offramp.save(path, self.net, self.frontier, self.costs, **options)


@pytest.fixture(scope="module")
def made():
    return Made()


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "artifact"
    made.save(path, records={"search": made.records}, include_backbone=True)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """An artifact to damage."""
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def check_loaded(made, loaded, model):
    net, frontier, costs = loaded
    assert net.backbone is model
    assert small.same(small.weights(net), small.weights(made.net))
    assert not any(part.training for part in net.modules())
    assert (net.positions, net.head_names) == (made.net.positions, made.net.head_names)
    assert frontier == made.frontier
    assert costs.to_json() == made.costs.to_json()
    x = small.inputs(made.kind, 7)
    wanted, final = made.net.forward_all(x)
    got, full = net.forward_all(x)
    assert torch.equal(full, final)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(got[exit_], wanted[exit_]) for exit_ in wanted)


def test_round_trip(made, saved):
    assert set(listing(saved)) == FILES | {"records-search.safetensors", "backbone.safetensors"}
    model = small.model()
    check_loaded(made, offramp.load(saved, model), model)
    records = load_records(saved, read_manifest(saved), "search")
    np.testing.assert_array_equal(records.confidence, made.records.confidence)
    assert records.positions == made.records.positions


@pytest.mark.parametrize("kind", [small.Vector, small.Tokens])
def test_round_trip_of_other_inputs(kind, tmp_path):
    positions = {small.Vector: "a", small.Tokens: "layers.0"}
    options = {"cuts": [positions[kind]], "heads": ("linear", "mlp"), "confidence": "margin"}
    made = Made(kind, positions[kind], **options)
    made.save(tmp_path / "a")
    model = small.model(kind)
    loaded = offramp.load(tmp_path / "a", model)
    check_loaded(made, loaded, model)
    assert loaded[0].confidence == "margin"


def test_nothing_of_the_users_samples_is_stored_but_integers(saved, tmp_path):
    example = load_file(saved / "example.safetensors")["0"]
    assert tuple(example.shape) == (2, 1, 8, 8)
    assert not torch.equal(example, small.inputs()[:2])
    tokens = Made(small.Tokens, "layers.0")
    tokens.save(tmp_path / "a")
    stored = load_file(tmp_path / "a" / "example.safetensors")
    assert torch.equal(stored["ids"], small.inputs(small.Tokens)["ids"][:2])


def test_the_same_content_gives_the_same_bytes(made, saved, tmp_path):
    for name in ("a", "b"):
        made.save(tmp_path / name, records={"search": made.records}, include_backbone=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(saved)


def test_the_model_keeps_its_mode_and_state(saved):
    model = small.model().train()
    model.blocks.eval()
    modes, before = [part.training for part in model.modules()], small.weights(model)
    offramp.load(saved, model)
    assert [part.training for part in model.modules()] == modes
    assert small.same(before, small.weights(model))


def test_another_model_is_refused(saved):
    for model in (small.model(seed=1), small.model(width=5), small.model(small.Vector)):
        kind = type(model).__name__
        with pytest.raises(
            ArtifactError, match=rf"made for another model: .*Picture .* got a {kind} .*restore"
        ):
            offramp.load(saved, model)


def test_restoring_the_backbone(made, saved):
    model = small.model(seed=1).train()
    check_loaded(made, offramp.load(saved, model, restore_backbone=True), model)
    assert small.same(small.weights(model), small.weights(made.model))
    assert model.training


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            small.model(width=5),
            r"'blocks.0.conv.weight' is torch.float32\[6, 6, 3, 3\] in the artifact and .*\[5",
        ),
        (
            small.model(small.Vector),
            r"'a.bias' is NoneType in the artifact and torch.float32\[8\] in the model",
        ),
        (small.model().double(), r".* is torch.float32.* in the artifact and torch.float64.* in the model"),
    ],
)
def test_a_backbone_that_does_not_fit_is_not_touched(saved, model, message):
    before = small.weights(model)
    with pytest.raises(ArtifactError, match=rf"the stored backbone does not fit this .*: {message}"):
        offramp.load(saved, model, restore_backbone=True)
    assert small.same(before, small.weights(model))


def test_a_backbone_that_was_not_stored(made, tmp_path):
    made.save(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"holds no backbone weights; save with include_backbone=True"):
        offramp.load(tmp_path / "a", small.model(), restore_backbone=True)
    with pytest.raises(ArtifactError, match=r"load the weights that it was built with"):
        offramp.load(tmp_path / "a", small.model(seed=1))


class Noted(small.Vector):
    """State that is not made of tensors."""

    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass


def test_a_backbone_with_other_state_can_be_referenced_but_not_stored(tmp_path):
    model = small.model(Noted)
    net = offramp.attach_exits(model, small.inputs(small.Vector)[:2], heads=small.HEADS)
    costs = offramp.measure_cost(net)
    offramp.save(tmp_path / "a", net, frontier_of(costs, "a"), costs)
    offramp.load(tmp_path / "a", small.model(Noted))
    with pytest.raises(
        InputError, match=r"'_extra_state' is not an ordinary tensor; save with include_backbone=F"
    ):
        offramp.save(tmp_path / "b", net, frontier_of(costs, "a"), costs, include_backbone=True)
    assert listing(tmp_path) == ["a"]


def test_parts_of_another_network_are_refused(made, tmp_path):
    other = Made(small.Vector, "a", heads=("linear", "mlp"))
    for arguments, message in (
        (
            (made.frontier, other.costs),
            r"costs: expected 3 positions and 3 heads .* got 3 and 2; measure them",
        ),
        ((other.frontier, made.costs), r"frontier: the network has no head 'linear' at 'a'; search again"),
        ((frontier_of(made.costs, head="odd"), made.costs), r"frontier: the network has no head 'odd' at"),
    ):
        with pytest.raises(InputError, match=message):
            offramp.save(tmp_path / "a", made.net, *arguments)
    with pytest.raises(InputError, match=r"records 'search': their positions or heads are not the network's"):
        made.save(tmp_path / "a", records={"search": other.records})
    with pytest.raises(InputError, match=r"records: expected plain names such as 'search', got '../x'"):
        made.save(tmp_path / "a", records={"../x": made.records})
    assert listing(tmp_path) == []


# replacing


def test_an_artifact_is_replaced_by_the_next(made, copy):
    made.save(copy)
    assert set(listing(copy)) == FILES
    assert listing(copy.parent) == ["artifact"]
    link = copy.parent / "link"
    link.symlink_to(copy)
    made.save(link, records={"search": made.records})
    assert link.is_symlink()
    assert "records-search.safetensors" in listing(copy)


def test_an_empty_folder_and_new_parents_are_fine(made, tmp_path):
    (tmp_path / "empty").mkdir()
    made.save(tmp_path / "empty")
    made.save(tmp_path / "new" / "folder" / "artifact")
    assert set(listing(tmp_path / "empty")) == set(listing(tmp_path / "new/folder/artifact")) == FILES


@pytest.mark.parametrize("manifest", [None, "{}", '{"format": "offramp.artifact", "version": 1}', "no"])
def test_a_folder_of_something_else_is_left_alone(made, tmp_path, manifest):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("years")
    if manifest is not None:
        (tmp_path / "work" / "manifest.json").write_text(manifest)
    before = contents(tmp_path / "work")
    with pytest.raises(StorageError, match=r"work exists and is not an artifact; choose another folder or"):
        made.save(tmp_path / "work")
    assert contents(tmp_path / "work") == before
    assert listing(tmp_path) == ["work"]


def test_an_artifact_with_something_beside_it_is_left_alone(made, copy):
    (copy / "notes.txt").write_text("mine")
    before = contents(copy)
    with pytest.raises(StorageError, match=r"holds more than an artifact: notes.txt; choose another"):
        made.save(copy)
    assert contents(copy) == before


def test_strangers_are_ignored_and_kept(made, copy):
    (copy / "report.html").write_text("<p>")
    (copy / "notes").mkdir()
    (copy / "notes" / "a.txt").write_text("mine")
    (copy / ".DS_Store").write_bytes(b"\0")
    (copy / "link").symlink_to("nowhere")
    before, new = contents_below(copy), frontier_of(made.costs, threshold=0.25)
    check_loaded(made, offramp.load(copy, model := small.model()), model)
    assert load_records(copy, read_manifest(copy), "search").samples == made.records.samples
    replace_frontier(copy, new)
    after = contents_below(copy)
    assert after.keys() == before.keys()
    assert {n for n in before if before[n] != after[n]} == {"frontier.json", "manifest.json"}
    assert "report.html" not in read_manifest(copy)["files"]
    assert offramp.load(copy, small.model())[1] == new
    os.mkfifo(copy / "pipe")
    with pytest.raises(StorageError, match="pipe is neither a file nor a folder; move it elsewhere"):
        replace_frontier(copy, made.frontier)
    assert contents_below(copy).keys() == {*after, "pipe"}


def test_what_systems_drop_into_folders_is_not_missed(made, copy):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (copy / name).touch()
    made.save(copy)
    assert set(listing(copy)) == FILES


# loading while another is saved


def another(made, path):
    """Save an artifact that differs in its heads and its frontier."""
    net = offramp.attach_exits(small.model(), small.few(small.inputs()), heads=small.HEADS, seed=9)
    offramp.save(path, net, frontier_of(made.costs, threshold=0.125), made.costs)
    return net


@pytest.mark.parametrize("after", ["read_manifest", "load_frontier", "load_costs", "load_tensors"])
def test_an_artifact_replaced_while_it_is_read_is_read_again(made, copy, tmp_path, monkeypatch, after):
    original, swaps = getattr(artifact, after), []

    def swapping(*arguments):
        found = original(*arguments)
        if not swaps:
            swaps.append(another(made, copy))
        return found

    monkeypatch.setattr(artifact, after, swapping)
    net, frontier, _ = offramp.load(copy, small.model())
    same_heads = small.same(small.weights(net), small.weights(swaps[0]))
    assert (same_heads, frontier[0].choices[0].threshold) in ((True, 0.125), (False, 0.5))


def test_files_overwritten_after_the_check_are_refused(made, copy, tmp_path, monkeypatch):
    another(made, tmp_path / "other")
    original = artifact.load_frontier

    def copying(*arguments):
        for name in ("heads.safetensors", "manifest.json"):
            shutil.copy(tmp_path / "other" / name, copy)
        return original(*arguments)

    monkeypatch.setattr(artifact, "load_frontier", copying)
    with pytest.raises(ArtifactError, match=r"does not match its checksum|expected .* bytes"):
        offramp.load(copy, small.model())


def test_one_that_never_stays_is_given_up(made, copy, monkeypatch):
    original, turns = artifact.load_frontier, []

    def swapping(*arguments):
        turns.append(1)
        made.save(copy, records={f"r{len(turns)}": made.records})
        offramp.artifacts.replace_frontier(copy, frontier_of(made.costs, threshold=len(turns) / 64))
        return original(*arguments)

    monkeypatch.setattr(artifact, "load_frontier", swapping)
    with pytest.raises(ArtifactError, match=r"frontier.json: (does not match|expected)"):
        offramp.load(copy, small.model())
    assert len(turns) == 10


@pytest.mark.parametrize("name", sorted({"manifest.json", "heads.safetensors", "frontier.json"}))
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(ArtifactError):
        offramp.load(copy, small.model())


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "file/below"], ids=["long", "null", "below a file"])
def test_paths_that_cannot_be_are_artifact_errors(tmp_path, name):
    (tmp_path / "file").touch()
    for read in (offramp.load, offramp.load_tasks):
        with pytest.raises(ArtifactError, match="check the path"):
            read(str(tmp_path / name), small.model())
    with pytest.raises(ArtifactError, match="check the path"):
        offramp.ExitRecords.load(str(tmp_path / name))


def test_a_link_to_itself_is_an_artifact_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError):
        offramp.load(tmp_path / "loop", small.model())
    with pytest.raises(ArtifactError):
        offramp.ExitRecords.load(tmp_path / "loop")


def test_what_may_not_be_read_is_an_artifact_error(copy, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ArtifactError, match=r"cannot read .*manifest.json: Permission denied; copy it again"):
        offramp.load(copy, small.model())
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ArtifactError, match=r"cannot read .*manifest.json: Permission denied; check the"):
        offramp.load(copy, small.model())


# killed


def test_a_save_that_is_killed_leaves_a_whole_artifact(made, copy):
    for at in kills.moments(12):
        assert kills.killed_save(made, copy, at)
        check_whole(made, copy)


@pytest.mark.parametrize("left", [".artifact.0123abcd.tmp", ".artifact.0123abcd.old"])
def test_what_a_killed_save_left_is_cleared(made, copy, left):
    (copy.parent / left).mkdir()
    (copy.parent / left / "heads.safetensors").touch()
    for other in (".artifact.tmp", ".artifact.0123.tmp", ".artifact2.0123abcd.tmp", "artifact.0123abcd.tmp"):
        (copy.parent / other).mkdir()
    made.save(copy)
    assert len(listing(copy.parent)) == 5
    assert left not in listing(copy.parent)


def test_what_was_moved_aside_is_put_back(made, copy, monkeypatch):
    aside = copy.with_name(".artifact.0123abcd.old")
    copy.rename(aside)  # as a kill between two renames leaves it, where folders cannot be exchanged
    monkeypatch.setattr(artifact, "write_manifest", full)
    with pytest.raises(StorageError, match="no space left"):
        made.save(copy)
    check_loaded(made, offramp.load(copy, model := small.model()), model)
    assert listing(copy.parent) == ["artifact"]


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_temporary_of_a_save_under_way_is_left(made, copy):
    with atomic.atomic_folder(copy) as folder:
        (folder / "x").touch()
        made.save(copy)
        assert listing(folder) == ["x"]
    assert listing(copy) == ["x"]


def test_a_system_that_cannot_exchange(made, copy, monkeypatch):
    monkeypatch.setattr(system, "_EXCHANGE", None)
    made.save(copy)
    assert set(listing(copy)) == FILES
    assert listing(copy.parent) == ["artifact"]


def test_a_file_system_that_cannot_exchange(made, copy, monkeypatch):
    def refusing(code):
        def refuse(*_):
            ctypes.set_errno(code)
            return -1

        return refuse

    monkeypatch.setattr(system, "_EXCHANGE", refusing(errno.EINVAL))
    made.save(copy)
    assert listing(copy.parent) == ["artifact"]
    monkeypatch.setattr(system, "_EXCHANGE", refusing(errno.EACCES))
    with pytest.raises(StorageError, match="permission denied"):
        made.save(copy)
    assert listing(copy.parent) == ["artifact"]


def test_a_name_as_long_as_the_system_takes(made, tmp_path):
    path = tmp_path / ("a" * 255)
    for _ in range(2):
        made.save(path)
    assert listing(tmp_path) == ["a" * 255]


def contents_below(folder):
    paths = (path for path in folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def check_whole(made, copy):
    """Under the final name is the old artifact or the new one, and nothing beside it after the next save."""
    _, frontier, _ = offramp.load(copy, small.model())
    assert frontier[0].choices[0].threshold in (0.5, kills.NEW)
    made.save(copy)
    assert listing(copy.parent) == ["artifact"]


def test_a_path_that_cannot_be_written(made, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file is a file; choose another folder"):
        made.save(tmp_path / "file")
    with pytest.raises(StorageError, match=r"a file is where a folder is expected"):
        made.save(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), RuntimeError("mine")])
@pytest.mark.parametrize(
    "where", ["save_tensors", "write_manifest", "flush", "exchange", "rename", "second rename"]
)
def test_a_failure_at_any_moment_leaves_the_old_artifact(made, copy, monkeypatch, error, where):
    before, renames = contents(copy), []
    rename = Path.rename

    def fail(*_):
        raise error

    def failing_rename(self, target):
        renames.append(target)
        if len(renames) == (1 if where == "rename" else 2):
            raise error
        return rename(self, target)

    if "rename" in where:  # where the system cannot exchange two folders
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", failing_rename)
    elif where in ("flush", "exchange"):
        monkeypatch.setattr(atomic, where, fail)
    else:
        monkeypatch.setattr(artifact, where, fail)
    wanted = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        offramp.save(copy, made.net, frontier_of(made.costs, threshold=0.7), made.costs)
    assert contents(copy) == before
    assert listing(copy.parent) == ["artifact"]


def test_a_full_disk_says_so(made, tmp_path, monkeypatch):
    def full(*_):
        raise tensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("offramp.artifacts.tensors.save_file", full)
    with pytest.raises(StorageError, match=r"cannot write .*No space left on device.*check free space"):
        made.save(tmp_path / "a")
    assert listing(tmp_path) == []


def test_replacing_the_frontier_keeps_the_rest(made, copy):
    before, new = contents(copy), frontier_of(made.costs, threshold=0.25)
    replace_frontier(copy, new)
    after = contents(copy)
    assert {name for name in before if before[name] != after[name]} == {"frontier.json", "manifest.json"}
    assert offramp.load(copy, small.model())[1] == new
    with pytest.raises(InputError, match=r"the network has no head 'linear' at 'elsewhere'"):
        replace_frontier(copy, frontier_of(made.costs, "elsewhere"))
    assert contents(copy) == after


# damage


@pytest.mark.parametrize("name", sorted(FILES | {"records-search.safetensors", "backbone.safetensors"}))
@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "removed", "a folder"])
def test_any_damage_to_any_file_is_refused(copy, name, damage):
    path = copy / name
    whole = path.read_bytes()
    at = len(whole) // 2
    changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "removed":
        path.write_bytes({"cut": whole[:at], "changed": changed, "longer": whole + b" x"}[damage])
    with pytest.raises(ArtifactError, match=re.escape(name.partition(".")[0])) as caught:
        offramp.load(copy, small.model())
    assert re.search("copy|check the path|build it again|not JSON", str(caught.value))


def rewrite(folder, change):
    """Change the manifest and make it consistent again, as an attacker would."""
    document = json.loads((folder / "manifest.json").read_text())
    document.pop("sha256")
    change(document)
    for name, entry in document["files"].items() if isinstance(document.get("files"), dict) else ():
        if (folder / name).is_file() and isinstance(entry, dict) and entry.pop("recompute", None):
            content = (folder / name).read_bytes()
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    document["sha256"] = hashlib.sha256(canonical(document).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))


def fields():
    for section, names in manifest._FIELDS.items():
        yield (section,)
        yield from ((section, name) for name in names)
    yield ("files",)


@pytest.mark.parametrize("path", list(fields()), ids=".".join)
@pytest.mark.parametrize("value", ["missing", 3.5, ["a", 1], {"a": 1}, 10**30])
def test_a_manifest_with_a_wrong_field_is_refused(copy, path, value):
    def change(document):
        *parents, last = path
        for name in parents:
            document = document[name]
        if value == "missing":
            del document[last]
        else:
            document[last] = value

    rewrite(copy, change)
    with pytest.raises(ArtifactError):
        offramp.load(copy, small.model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=3), r"version 3 is newer than this release reads \(2\); upgrade offramp"),
        (lambda d: d.update(format="other"), r"got format 'other'"),
        (
            lambda d: d["files"].update({"../x": {"bytes": 1, "sha256": ""}}),
            r"'../x' is missing; copy the whole",
        ),
        (lambda d: d["files"].update({"/etc/passwd": {"bytes": 1}}), r"'/etc/passwd' is missing"),
        (lambda d: d["files"].update({"..": {}}), r"'..' is missing"),
        (lambda d: d["files"].update({"": {}}), r"'' is missing"),
        (lambda d: d["files"].update({"a\0b": {}}), r"is missing"),
        (lambda d: d["files"]["costs.json"].clear(), r"costs.json: expected None bytes"),
        (lambda d: d["files"]["costs.json"].update(sha256=3), r"costs.json: does not match its checksum"),
        (lambda d: d["files"].pop("heads.safetensors"), r"'heads.safetensors' is missing from the manifest"),
        (lambda d: d["files"].pop("frontier.json"), r"'frontier.json' is missing from the manifest; build"),
        (
            lambda d: d["network"].update(heads=["linear", "mlp", "unknown"]),
            r"do not fit this model: unknown head",
        ),
        (
            lambda d: d["network"].update(heads=["linear"]),
            r"do not belong together: costs: expected 3 positions and 1 heads",
        ),
        (
            lambda d: d["network"].update(kinds=[[1, 0, "mlp"]]),
            r"(?s)its heads do not fit this model: .*linear",
        ),
        (lambda d: d["network"].update(kinds=[[9, 0, "mlp"]]), r"no position 9 with a head number 0"),
        (lambda d: d["network"].update(kinds=[[1, 0, "unknown"]]), r"do not fit this model: unknown head"),
        (lambda d: d["network"].pop("kinds"), r"made by a version whose heads were others; build it again"),
        (lambda d: d["network"].update(kinds=[1]), r"do not fit this model"),
        (lambda d: d["network"].update(kinds=[[1, 0, ["mlp"]]]), r"do not fit this model"),
        (lambda d: d["network"].update(mask="0"), r"do not fit this model: mask"),
        (lambda d: d["network"].update(task_options={"scale": 1}), r"do not fit this model: task"),
        (lambda d: d["network"].update(task_options=[]), r"do not fit this model"),
        (
            lambda d: d["network"].update(cuts=["blocks.0", "blocks.7"]),
            r"do not fit this model: .*no module call 'blocks.7'",
        ),
        (lambda d: d["network"].update(task="poetry"), r"do not fit this model: unknown task 'poetry'"),
        (lambda d: d["network"].update(confidence="blind"), r"do not fit this model: unknown confidence"),
        (lambda d: d["network"].update(output="logits"), r"do not fit this model: model output"),
        (lambda d: d["network"].update(layouts={"blocks.0": "WHC"}), r"do not fit this model: layouts"),
        (lambda d: d["inputs"].update(names=["0", "1"]), r"expected examples of \['0', '1'\], got \['0'\]"),
        (lambda d: d["inputs"].update(keyword=True), r"its heads do not fit this model"),
    ],
)
def test_a_hostile_manifest_is_refused(copy, change, message):
    rewrite(copy, change)
    with pytest.raises(ArtifactError, match=message):
        offramp.load(copy, small.model())


@pytest.mark.parametrize("text", ["", "{", "[]", "9" * 5000, "[" * 100_000, '{"format": "offramp.artifact"}'])
def test_a_manifest_that_is_no_document_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        offramp.load(copy, small.model())


def put(name, content):
    def change(folder):
        (folder / name).write_bytes(content)
        rewrite(folder, lambda d: d["files"][name].update(recompute=True))

    return change


def put_tensors(name, tensors):
    def change(folder):
        save_file(tensors, folder / name)
        rewrite(folder, lambda d: d["files"][name].update(recompute=True))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("heads.safetensors", b"\x80\x04pickle"), r"heads.safetensors: not a whole safetensors file"),
        (put("frontier.json", b"[]"), r"expected an offramp.frontier document"),
        (put("frontier.json", b"\xff\xff"), r"cannot read .*frontier.json"),
        (put("costs.json", b"{}"), r"expected an offramp.costs document"),
        (put_tensors("heads.safetensors", {"x": torch.zeros(1)}), r"its heads do not fit this model"),
        (put_tensors("example.safetensors", {"0": torch.zeros(())}), r"its heads do not fit this model"),
        (put_tensors("example.safetensors", {"0": torch.zeros(2, 9)}), r"its heads do not fit this model"),
    ],
)
def test_hostile_files_with_right_checksums_are_refused(copy, change, message):
    change(copy)
    with pytest.raises(ArtifactError, match=message):
        offramp.load(copy, small.model())


def test_parts_that_do_not_belong_together_are_refused(made, copy):
    put("frontier.json", frontier_of(made.costs, "elsewhere").to_json().encode())(copy)
    with pytest.raises(
        ArtifactError, match=r"its parts do not belong together: frontier: the network has no"
    ):
        offramp.load(copy, small.model())


def test_a_head_that_is_not_registered(tmp_path):
    made = Made(small.Vector, "a", heads=("linear", "small-own"))
    made.save(tmp_path / "a")
    factory = registry._HEADS._entries.pop("small-own")
    try:
        with pytest.raises(ArtifactError, match=r"do not fit this model: unknown head 'small-own'"):
            offramp.load(tmp_path / "a", small.model(small.Vector))
    finally:
        register_head("small-own")(factory)
    assert offramp.load(tmp_path / "a", small.model(small.Vector))


def test_paths_that_are_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected an artifact at .*nowhere, found no folder; check"):
        offramp.load(tmp_path / "nowhere", small.model())
    with pytest.raises(
        ArtifactError, match=r"expected an artifact at .*, found no manifest.json; check the path"
    ):
        offramp.load(tmp_path, small.model())


def test_records_that_were_not_stored(copy):
    with pytest.raises(ArtifactError, match=r"holds no report records; build it again with a 'report' split"):
        load_records(copy, read_manifest(copy), "report")


def test_nothing_is_executed_from_files():
    words = re.compile(r"\b(pickle|torch\.load|np\.load|joblib|marshal|shelve)\b|(?<![.\w])(eval|exec)\(")
    harmless = (
        "no pickle",
        "def eval(",
        "weights_only=True",
        "allow_pickle=False",
        "UnpicklingError",
    )
    source = Path(offramp.__file__).parent
    found = {
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if words.search(line)
    }
    assert {line for line in found if not any(word in line for word in harmless)} == set()
