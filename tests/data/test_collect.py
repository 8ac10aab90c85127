"""Rows on disk: computed once, resumed after a kill, and never mixed up."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch

from offramp.data import row_store
from offramp.data.collect import checked_batches, collect
from offramp.data.inputs import InputSpec
from offramp.data.row_store import RowStore, StoreProgress
from offramp.errors import InputError, StorageError

SPEC = InputSpec.of(torch.zeros(1, 2))


def loader(count=5, size=3, seed=0, last=2, labelled=True):
    generator = torch.Generator().manual_seed(seed)
    sizes = [size] * (count - 1) + [last]
    xs = [torch.rand(n, 2, generator=generator) for n in sizes]
    return [(x, torch.arange(len(x))) for x in xs] if labelled else xs


class Compute:
    """Counts its calls; fails at a call where asked."""

    def __init__(self, stop=None, error=KeyboardInterrupt):
        self.calls, self.stop, self.error = 0, stop, error

    def __call__(self, values, labels):
        self.calls += 1
        if self.calls == self.stop:
            raise self.error
        arrays = {"double": 2 * values[0].numpy(), "sum": values[0].sum(1).numpy()}
        return arrays if labels is None else {**arrays, "labels": labels.numpy()}


def run(folder, batches, compute=None, **options):
    return collect(folder, SPEC, batches, compute or Compute(), label="Testing", **options)


def check(rows, batches):
    x = torch.cat([batch[0] if isinstance(batch, tuple) else batch for batch in batches]).numpy()
    np.testing.assert_array_equal(rows.arrays["double"], 2 * x)
    assert rows.arrays["sum"].shape == (len(x),)
    if isinstance(batches[0], tuple):
        np.testing.assert_array_equal(rows.arrays["labels"], torch.cat([y for _, y in batches]).numpy())


@pytest.fixture
def eager(monkeypatch):
    """Every batch is committed at once."""
    monkeypatch.setattr(row_store, "_COMMIT_EVERY", 0.0)


def test_rows_come_in_the_loaders_order(tmp_path):
    for name, labelled in (("a", True), ("b", False)):
        batches = loader(labelled=labelled)
        check(run(tmp_path / name, batches), batches)
    batches = loader()
    check(run(tmp_path / "c", iter(batches)), batches)


def test_passes_follow_one_another(tmp_path):
    batches = loader()
    check(run(tmp_path, batches, passes=3), batches * 3)


def test_what_is_there_is_not_computed_again(tmp_path):
    compute = Compute()
    first = run(tmp_path, loader(), compute)
    second = run(tmp_path, loader(), compute)
    assert compute.calls == 5
    assert first.digest == second.digest
    check(second, loader())


def test_more_batches_of_the_same_loader_are_added(tmp_path):
    run(tmp_path, loader()[:3])
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 2


def test_a_map_can_be_changed_without_changing_the_file(tmp_path):
    run(tmp_path, loader()).arrays["double"][:] = 0
    check(run(tmp_path, loader()), loader())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("mine")], ids=["interrupt", "error"])
def test_an_interruption_keeps_what_was_computed(tmp_path, error):
    with pytest.raises(type(error)):
        run(tmp_path, loader(), Compute(stop=4, error=error))
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 2


def test_the_loaders_own_errors_stay_its_own(tmp_path):
    def broken():
        yield from loader()[:2]
        raise FileNotFoundError("image-3.png")

    with pytest.raises(FileNotFoundError, match="image-3"):
        run(tmp_path, broken())
    assert RowStore(tmp_path).progress.batches == 2


def test_rows_behind_the_last_commit_do_not_count(tmp_path):
    batches = loader()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batches, Compute(stop=3))
    for path in tmp_path.glob("*.bin"):  # as a kill between append and commit leaves it
        with path.open("ab") as stream:
            stream.write(b"\1" * 100)
    compute = Compute()
    check(run(tmp_path, batches, compute), batches)
    assert compute.calls == 3


def test_rows_without_a_commit_do_not_count(tmp_path):
    (tmp_path / "0.bin").write_bytes(b"\1" * 100)
    check(run(tmp_path, loader()), loader())


def damage_json(folder):
    (folder / "progress.json").write_text("{")


def damage_fields(folder, **changes):
    state = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**state, **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_json,
        lambda f: (f / "progress.json").write_bytes(b"\xff\xfe"),
        lambda f: (f / "progress.json").write_text("[]"),
        lambda f: (f / "0.bin").unlink(),
        lambda f: (f / "1.bin").write_bytes(b""),
        lambda f: damage_fields(f, progress={"rows": -1, "batches": 1, "digest": ""}),
        lambda f: damage_fields(f, progress={"rows": 10**6, "batches": 1, "digest": ""}),
        lambda f: damage_fields(f, progress={"rows": "1", "batches": 1, "digest": ""}),
        lambda f: damage_fields(f, progress={"rows": 1, "batches": 1, "digest": "", "more": 1}),
        lambda f: damage_fields(f, columns=[["double", "|O", [2]]]),
        lambda f: damage_fields(f, columns=[["double", "<x9", [2]]]),
        lambda f: damage_fields(f, columns=[["double", "<f4", [-2]]]),
        lambda f: damage_fields(f, columns="no"),
    ],
)
def test_a_damaged_store_is_computed_again(tmp_path, damage):
    run(tmp_path, loader())
    damage(tmp_path)
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 5


@pytest.mark.parametrize("at", range(0, 2 * 14 * 4, 16))
def test_a_flipped_bit_costs_its_block_and_what_follows(tmp_path, monkeypatch, eager, at):
    monkeypatch.setattr(row_store, "_BLOCK", 1)  # every batch is a block of its own
    run(tmp_path, loader())
    content = bytearray((tmp_path / "0.bin").read_bytes())
    content[at] ^= 4
    (tmp_path / "0.bin").write_bytes(content)
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 5 - at // (3 * 8)  # 3 samples of 2 numbers of 4 bytes in a batch
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 0


def test_a_bit_flipped_in_a_block_of_many_batches_costs_all_of_them(tmp_path):
    run(tmp_path, loader())
    content = bytearray((tmp_path / "1.bin").read_bytes())
    content[-1] ^= 1
    (tmp_path / "1.bin").write_bytes(content)
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 5


def resealed(folder, **changes):
    """Wrong values under a right digest, as only a fault of the writer would leave them."""
    state = {**json.loads((folder / "progress.json").read_text()), **changes}
    state.pop("sha256")
    sealed = {**state, "sha256": row_store.document_digest(state)}
    (folder / "progress.json").write_text(json.dumps(sealed))


END = {"rows": 14, "batches": 5, "digest": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": [["double", "<f4", [2**70]]]},
        {"columns": [["double", "<f4", 2]]},
        {"columns": 7},
        {"columns": [["double", [], [2]]]},
        {"blocks": None},
        {"blocks": [[END, []]]},
        {"blocks": [[END, None]]},
        {"blocks": [[{**END, "rows": 10**12}, ["", "", ""]]]},
        {"blocks": [[{**END, "rows": True}, ["", "", ""]]]},
        {"blocks": [[{**END, "digest": 3}, ["", "", ""]]]},
        {"version": 2},
        {"format": "another"},
    ],
    ids=str,
)
def test_wrong_values_are_computed_again(tmp_path, changes):
    run(tmp_path, loader())
    resealed(tmp_path, **changes)
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 5


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "NaN", "1" * 5000, "\0"], ids=lambda t: t[:5]
)
def test_text_that_is_no_document_is_computed_again(tmp_path, text):
    run(tmp_path, loader())
    (tmp_path / "progress.json").write_text(text)
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 5


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.bin")
    (tmp_path / "1.bin").symlink_to(tmp_path / "elsewhere")
    check(run(tmp_path, loader()), loader())
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "progress.json").unlink()
    os.mkfifo(tmp_path / "progress.json")
    check(run(tmp_path, loader()), loader())


@pytest.mark.parametrize("change", ["inputs", "labels", "fewer", "order"])
@pytest.mark.parametrize("done", [True, False])
def test_other_batches_are_computed_anew_and_said_so(tmp_path, change, done):
    batches = loader()
    if done:
        run(tmp_path, batches)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, batches, Compute(stop=5))
    other = {
        "inputs": loader(seed=1),
        "labels": [(x, y + 1) for x, y in batches],
        "fewer": batches[:2],
        "order": [batches[1], batches[0], *batches[2:]],
    }[change]
    compute = Compute()
    with pytest.warns(UserWarning, match=r"rows of other batches .* computed again.*shuffle=False"):
        check(run(tmp_path, other, compute), other)
    assert compute.calls == len(other)


def test_apart_keeps_loaders_side_by_side(tmp_path):
    compute = Compute()
    for _ in range(2):
        for seed in (0, 1):
            check(run(tmp_path, loader(seed=seed), compute, apart=True), loader(seed=seed))
    assert compute.calls == 10


def test_a_loader_for_one_pass(tmp_path):
    with pytest.raises(InputError, match=r"gone through 2 times, got a list_iterator.*or views=1"):
        run(tmp_path, iter(loader()), passes=2)
    run(tmp_path, loader())
    with pytest.raises(InputError, match=r"not the ones .* cannot be gone through again; .* run again"):
        run(tmp_path, iter(loader(seed=1)))
    check(run(tmp_path, iter(loader(seed=1))), loader(seed=1))


class Exhausted:
    """Iterable, but only once."""

    def __init__(self, batches):
        self.left = iter(batches)

    def __iter__(self):
        return self.left


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"the loader yields no samples; expected at least one"),
        ([torch.zeros(0, 2)], r"the loader yields no samples"),
        (3, r"loader: expected batches to go through, such as a DataLoader; got a int"),
        ([torch.zeros(2, 3)], r"batch 0 of the loader: input '0': expected shape \(B, 2\), got \(2, 3\)"),
        (
            [torch.zeros(2, 2), torch.zeros(2, 2).double()],
            r"batch 1 of the loader: input '0': expected torch",
        ),
        (
            [(torch.zeros(2, 2), torch.zeros(2)), torch.zeros(2, 2)],
            r"batch 1 .*earlier batches had labels, this one has none",
        ),
        (
            [torch.zeros(2, 2), (torch.zeros(2, 2), torch.zeros(2))],
            r"batch 1 .*earlier batches had no labels, this one has some",
        ),
        ([(torch.zeros(2, 2), torch.zeros(3))], r"batch 0 .*expected labels for 2 inputs, got shape \(3,\)"),
        ([(torch.zeros(2, 2), torch.tensor(1))], r"expected labels for 2 inputs, got shape \(\)"),
        ([(torch.zeros(2, 2), ["a", "b"])], r"batch 0 of the loader: "),
        (
            [(torch.zeros(2, 2), torch.zeros(2)), (torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))],
            r"batch 1 .*expected .*labels float32\[\] as in earlier batches, got .*labels int64\[\]",
        ),
    ],
)
def test_a_loader_that_does_not_fit_is_refused(tmp_path, batches, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, batches)


def test_a_second_pass_without_samples_is_refused(tmp_path):
    with pytest.raises(InputError, match="yields no samples"):
        run(tmp_path, Exhausted(loader()), passes=2)


def test_batches_are_checked_as_they_come():
    for passes in (1, 2):
        found = list(checked_batches(SPEC, loader(), passes))
        assert len(found) == 5 * passes
        assert all(torch.equal(x, y[0]) for ((x,), _), y in zip(found, loader() * passes, strict=True))
    assert [labels for _, labels in checked_batches(SPEC, loader(labelled=False))] == [None] * 5
    with pytest.raises(InputError, match="yields no samples"):
        list(checked_batches(SPEC, []))


def test_empty_batches_are_left_out(tmp_path):
    batches = loader()
    check(run(tmp_path, [batches[0], (torch.zeros(0, 2), torch.zeros(0).long()), *batches[1:]]), batches)


def test_errors_of_the_computation_name_the_batch(tmp_path):
    with pytest.raises(InputError, match=r"^batch 2 of the loader: what is wrong$"):
        run(tmp_path, loader(), Compute(stop=3, error=InputError("what is wrong")))


class FullDisk:
    """A file on a disk that takes ``room`` bytes more."""

    room = 0

    def __init__(self, stream):
        self.stream = stream

    def write(self, data):
        FullDisk.room -= data.nbytes
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.stream.write(data)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def test_a_full_disk_is_a_storage_error_and_the_work_is_kept(tmp_path, monkeypatch, eager):
    opened = RowStore._open

    def limited(store, columns):
        fresh = not store._files
        opened(store, columns)
        if fresh:
            store._files = {name: FullDisk(stream) for name, stream in store._files.items()}

    monkeypatch.setattr(RowStore, "_open", limited)
    FullDisk.room = 2 * 3 * (8 + 4 + 8) + 30  # two batches and part of a third
    with pytest.raises(StorageError, match=r"no space left on the device: .*; free some or choose"):
        run(tmp_path, loader())
    FullDisk.room = 10**6
    compute = Compute()
    check(run(tmp_path, loader(), compute), loader())
    assert compute.calls == 3


def test_an_error_while_keeping_the_work_does_not_hide_the_first(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(row_store, "write_text", full)
    monkeypatch.setattr(row_store, "_COMMIT_EVERY", float("inf"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", loader(), Compute(stop=3))
    with pytest.raises(StorageError, match="no space left"):
        run(tmp_path / "b", loader())


def test_a_folder_below_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"a file is where a folder is expected"):
        run(tmp_path / "file" / "below", loader())


def test_data_is_on_the_disk_before_it_counts(tmp_path, monkeypatch, eager):
    order = []
    monkeypatch.setattr(row_store.os, "fsync", lambda fd: order.append("data"))
    monkeypatch.setattr(row_store, "write_text", lambda *_: order.append("progress"))
    with RowStore(tmp_path) as store:
        store.append({"a": np.zeros(2), "b": np.zeros((2, 3))}, "x")
        assert order == ["data", "data", "progress"]
        assert store.progress == StoreProgress(2, 1, "x")


def test_commits_are_throttled(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(row_store, "_COMMIT_EVERY", 1000.0)
    monkeypatch.setattr(row_store, "write_text", lambda *_: written.append(1))
    run(tmp_path, loader(count=20))
    assert len(written) <= 2  # at the first batch, where the clock starts, and at the end


def test_a_progress_bar_counts_batches(tmp_path, capsys):
    run(tmp_path / "a", loader(), progress=True, passes=2)
    assert "10/10" in capsys.readouterr().err
    run(tmp_path / "b", iter(loader()), progress=True)
    err = capsys.readouterr().err
    assert "Testing" in err
    assert "5/?" in err
