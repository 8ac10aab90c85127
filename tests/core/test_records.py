"""Records as data: what they refuse, how they are divided, and their file."""

from __future__ import annotations

import errno
import itertools

import numpy as np
import pytest
from safetensors.numpy import save_file

from offramp.core.records import RECORDS_FORMAT, ExitRecords
from offramp.errors import ArtifactError, InputError, StorageError
from offramp.storage import atomic
from offramp.storage.arrays import save_arrays

ARRAYS = ("confidence", "quality", "final_quality", "exists", "final_confidence", "logits")


def make(samples=6, seed=0, **changes):
    """Records of P=3, C=2. The whole part of ``confidence[..., n]`` is n, so samples can be told apart."""
    rng = np.random.default_rng(seed)
    shape = (3, 2, samples)
    arguments = {
        "confidence": rng.random(shape) * 0.5 + np.arange(samples),
        "quality": rng.integers(0, 2, shape),
        "final_quality": rng.random(samples),
        "exists": [[False, False], [True, True], [True, False]],
        "positions": ("input", "early", "late"),
        "heads": ("linear", "mlp"),
    }
    return ExitRecords(**{**arguments, **changes})


def rich(samples=6):
    rng = np.random.default_rng(1)
    return make(
        samples,
        final_confidence=rng.random(samples),
        logits=rng.normal(size=(3, 2, samples, 4)),
        meta={"quality": "labels", "classes": 4},
    )


def assert_same(left, right):
    assert (left.positions, left.heads, left.meta) == (right.positions, right.heads, right.meta)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def which(records):
    """The original sample numbers, read back from the confidences."""
    return np.floor(records.confidence[1, 0]).astype(int).tolist()


def test_arrays_are_float32_and_names_are_tuples():
    records = make(positions=["input", "early", "late"], heads=["linear", "mlp"])
    assert records.samples == 6
    assert records.positions == ("input", "early", "late")
    assert records.heads == ("linear", "mlp")
    assert {getattr(records, name).dtype for name in ARRAYS[:3]} == {np.dtype(np.float32)}
    assert records.exists.dtype == bool


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": np.zeros((3, 2, 5))}, r"confidence: expected shape \(3, 2, 6\), got \(3, 2, 5\)"),
        ({"quality": np.zeros((2, 3, 6))}, r"quality: expected shape \(3, 2, 6\), got \(2, 3, 6\)"),
        ({"final_quality": np.zeros((6, 1))}, r"final_quality: expected shape \(6,\), got \(6, 1\)"),
        ({"exists": np.ones((2, 2))}, r"exists: expected shape \(3, 2\), got \(2, 2\)"),
        ({"final_confidence": np.zeros(5)}, r"final_confidence: expected shape \(6,\), got \(5,\)"),
        ({"logits": np.zeros((3, 2, 5, 9))}, r"logits: expected shape \(3, 2, 6, K\), got \(3, 2, 5, 9\)"),
        ({"logits": np.zeros((3, 2, 6))}, r"logits: expected shape \(3, 2, 6, K\)"),
        ({"positions": ("input", "late")}, r"confidence: expected shape \(2, 2, 6\)"),
        (
            {"positions": ("input", "late", "late")},
            r"positions: expected distinct names, got .*'late', 'late'",
        ),
        ({"heads": ("mlp", "mlp")}, r"heads: expected distinct names"),
        ({"quality": np.full((3, 2, 6), 1.5)}, r"quality: expected values in \[0, 1\], got 1.5 to 1.5"),
        ({"quality": np.full((3, 2, 6), -0.5)}, r"quality: expected values in \[0, 1\], got -0.5"),
        ({"quality": np.full((3, 2, 6), np.nan)}, r"quality: expected values in \[0, 1\], got nan"),
        ({"final_quality": np.full(6, 2.0)}, r"final_quality: expected values in \[0, 1\], got 2.0"),
        ({"final_quality": np.full(6, np.nan)}, r"final_quality: expected values in \[0, 1\], got nan"),
    ],
)
def test_impossible_records_are_refused(changes, message):
    with pytest.raises(InputError, match=rf"ExitRecords\.{message}"):
        make(**changes)


def test_what_does_not_exist_is_not_looked_at():
    quality = make().quality.copy()
    quality[0] = np.nan
    quality[2, 1] = 7
    assert make(quality=quality).samples == 6


def test_confidences_need_not_be_finite():
    assert np.isnan(make(confidence=np.full((3, 2, 6), np.nan)).confidence).all()


def test_no_samples_is_a_set_of_records():
    assert make(0).samples == 0


@pytest.mark.parametrize(
    "index", [[4, 1], np.array([4, 1]), np.array([-2, 1]), (4, 1)], ids=["list", "array", "negative", "tuple"]
)
def test_subset_keeps_the_order_asked_for(index):
    records = rich()
    part = records.subset(index)
    assert which(part) == [4, 1]
    assert (part.positions, part.heads, part.meta) == (records.positions, records.heads, records.meta)
    np.testing.assert_array_equal(part.quality, records.quality[:, :, [4, 1]])
    np.testing.assert_array_equal(part.final_quality, records.final_quality[[4, 1]])
    np.testing.assert_array_equal(part.final_confidence, records.final_confidence[[4, 1]])
    np.testing.assert_array_equal(part.logits, records.logits[:, :, [4, 1]])


def test_subset_by_mask():
    assert which(make().subset([True, False, False, True, False, False])) == [0, 3]
    assert make().subset(np.zeros(6, bool)).samples == 0
    assert make().subset([2]).final_confidence is None


def test_split_is_disjoint_and_complete():
    parts = make(101).split((0.5, 0.3, 0.2), seed=3)
    taken = [which(part) for part in parts]
    assert sorted(itertools.chain(*taken)) == list(range(101))
    assert [len(part) for part in taken] == [50, 31, 20]
    assert all(part == sorted(part) for part in taken)


def test_split_depends_on_the_seed_only():
    records = make(50)
    first, again, other = (records.split((0.5, 0.5), seed=seed)[0] for seed in (1, 1, 2))
    assert which(first) == which(again) != which(other)


@pytest.mark.parametrize(("fractions", "sizes"), [((0.2, 0.2), [4, 4]), ([0.1] * 10, [2] * 10), ((1,), [20])])
def test_split_sizes(fractions, sizes):
    assert [part.samples for part in make(20).split(fractions)] == sizes


@pytest.mark.parametrize("fractions", [(), (0.5, 0), (0.5, -0.1), (0.7, 0.4)])
def test_split_refuses_impossible_fractions(fractions):
    with pytest.raises(InputError, match=r"split\(\): expected positive fractions of sum at most 1, got \("):
        make().split(fractions)


@pytest.mark.parametrize("records", [make(), rich(), make(0), make(1)], ids=["plain", "rich", "empty", "one"])
def test_save_and_load_round_trip(tmp_path, records):
    records.save(tmp_path / "new" / "r.safetensors")
    assert_same(ExitRecords.load(str(tmp_path / "new" / "r.safetensors")), records)


def test_non_finite_confidences_survive_the_file(tmp_path):
    records = make(confidence=np.resize([np.nan, np.inf, -np.inf], (3, 2, 6)))
    records.save(tmp_path / "r")
    assert_same(ExitRecords.load(tmp_path / "r"), records)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected a file at .*nowhere, found none; check the path"):
        ExitRecords.load(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "r"
    make().save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"r: not a whole safetensors file .*copy or write it again"):
        ExitRecords.load(path)


def test_one_changed_byte_of_the_data_is_refused(tmp_path):
    path = tmp_path / "r"
    make().save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"r: its content does not match its checksum"):
        ExitRecords.load(path)


def test_a_changed_byte_anywhere_never_changes_what_is_read(tmp_path):
    path, records = tmp_path / "r", rich()
    records.save(path)
    whole = path.read_bytes()
    refused = 0
    places = np.linspace(0, len(whole) - 1, 250).astype(int)
    for at, mask in zip(places, np.resize([1, 2, 32, 128, 255], len(places)), strict=True):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ int(mask)]) + whole[at + 1 :])
        try:
            assert_same(ExitRecords.load(path), records)  # a byte of padding
        except ArtifactError:
            refused += 1
    assert refused >= 245


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "r"
    save_file({"confidence": np.zeros(3, np.float32)}, path)
    with pytest.raises(ArtifactError, match=r"expected a file written by offramp \(offramp.records\)"):
        ExitRecords.load(path)
    save_arrays(path, {"a": np.zeros(3)}, "offramp.features", 1, {})
    with pytest.raises(ArtifactError, match=r"got format 'offramp.features'"):
        ExitRecords.load(path)


def test_a_newer_version_is_refused(tmp_path):
    save_arrays(tmp_path / "r", {}, RECORDS_FORMAT, 2, {})
    with pytest.raises(ArtifactError, match=r"offramp.records: version 2 is newer .*upgrade offramp"):
        ExitRecords.load(tmp_path / "r")


@pytest.mark.parametrize(
    ("arrays", "meta", "message"),
    [
        ({}, {"positions": [], "heads": [], "meta": None}, r"missing 4 required"),
        ({}, {"heads": []}, r"'positions'"),
        ({"extra": np.zeros(1)}, {}, r"unexpected keyword argument 'extra'"),
        ({"quality": np.full((3, 2, 6), 3.0)}, {}, r"quality: expected values in \[0, 1\]"),
        ({"exists": np.ones((1, 1))}, {}, r"exists: expected shape"),
    ],
)
def test_a_sound_file_of_unsound_records_is_refused(tmp_path, arrays, meta, message):
    records = make()
    if not meta:
        arrays = {name: getattr(records, name) for name in ARRAYS[:4]} | arrays
        meta = {"positions": records.positions, "heads": records.heads, "meta": None}
    save_arrays(tmp_path / "r", arrays, RECORDS_FORMAT, 1, meta)
    with pytest.raises(ArtifactError, match=rf"r: not a set of records \(.*{message}.*\); record again"):
        ExitRecords.load(tmp_path / "r")


def test_an_unwritable_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*a file is where a folder is expected"):
        make().save(tmp_path / "file" / "r")


def test_a_full_disk_is_a_storage_error_and_the_old_records_stay(tmp_path, monkeypatch):
    path, old = tmp_path / "r", make(seed=1)
    old.save(path)

    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "flush", full)
    with pytest.raises(
        StorageError, match=r"no space left on the device: .*; free some or choose another folder"
    ):
        make(seed=2).save(path)
    assert_same(ExitRecords.load(path), old)
    assert [each.name for each in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize("name", ["positions", "heads"])
def test_a_plain_string_is_not_a_tuple_of_names(name):
    with pytest.raises(
        InputError, match=rf"ExitRecords.{name}: expected a tuple of names, got the string 'ab'"
    ):
        make(**{name: "ab"})


def test_the_first_position_is_the_input():
    with pytest.raises(
        InputError, match=r"positions: expected 'input' first, got \('early', 'input', 'late'\)"
    ):
        make(positions=("early", "input", "late"))


@pytest.mark.parametrize("index", [[], (), np.zeros(0), np.zeros(0, int), np.zeros(6, bool)])
def test_an_empty_subset(index):
    part = rich().subset(index)
    assert part.samples == 0
    assert part.logits.shape == (3, 2, 0, 4)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 6], r"expected indices below 6, got 0 to 6"),
        ([-7], r"expected indices below 6, got -7 to -7"),
        ([True, False], r"a boolean mask of shape \(6,\), got bool of shape \(2,\)"),
        (np.ones(7, bool), r"got bool of shape \(7,\)"),
        ([0.5, 1.0], r"expected integers or a boolean mask .*, got float64 of shape \(2,\)"),
        ([[0, 1]], r"got int64 of shape \(1, 2\)"),
        (3, r"got int64 of shape \(\)"),
        (["a"], r"got <U1 of shape \(1,\)"),
    ],
)
def test_impossible_subsets_are_refused(index, message):
    with pytest.raises(InputError, match=rf"subset\(\): .*{message}"):
        make().subset(index)


def test_fractions_may_be_of_any_kind_of_number():
    for fractions in (np.array([0.5, 0.5]), [np.float32(0.5), 0.5], (1,)):
        assert sum(part.samples for part in make().split(fractions)) == 6


@pytest.mark.parametrize("fractions", [[np.nan], [0.5, np.nan], [np.nan, 0.5], [np.inf], [-np.inf], []])
def test_fractions_that_are_no_fractions_are_refused(fractions):
    with pytest.raises(InputError, match=r"split\(\): expected positive fractions"):
        make().split(fractions)


def test_meta_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    for meta in ({"a": object()}, {"a": float("nan")}, {"a": np.float32(1)}, {"a": {1, 2}}):
        with pytest.raises(InputError, match=r"meta: expected plain JSON values, got one that is not"):
            make(meta=meta).save(tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- groups


def test_groups_are_whole_numbers_one_for_each_sample():
    for given in ([3, 3, 1, 1, -2, 7], np.array([3, 3, 1, 1, -2, 7], np.int8), (3, 3, 1, 1, -2, 7)):
        groups = make(groups=given).groups
        assert groups.dtype == np.int64
        assert groups.tolist() == [3, 3, 1, 1, -2, 7]
    assert make().groups is None


@pytest.mark.parametrize(
    ("groups", "got"),
    [
        (np.zeros(5, int), r"int64 of shape \(5,\)"),
        (np.zeros((6, 1), int), r"int64 of shape \(6, 1\)"),
        (np.zeros(6), r"float64 of shape \(6,\)"),
        (np.zeros(6, bool), r"bool of shape \(6,\)"),
        (list("aabbcc"), r"<U1 of shape \(6,\)"),
        (3, r"int64 of shape \(\)"),
    ],
    ids=str,
)
def test_groups_that_are_none_are_refused(groups, got):
    wanted = rf"ExitRecords.groups: expected whole numbers of shape \(6,\), one for each sample, got {got}"
    with pytest.raises(InputError, match=wanted):
        make(groups=groups)


def test_parts_carry_their_groups():
    records = make(10, groups=np.arange(10) // 3)
    assert records.subset([9, 0, 4]).groups.tolist() == [3, 0, 1]
    assert records.subset(np.arange(10) % 2 == 0).groups.tolist() == [0, 0, 1, 2, 2]
    assert records.subset([]).groups.tolist() == []
    for part in records.split((0.5, 0.5)):
        assert part.groups.tolist() == [n // 3 for n in which(part)]
    assert all(part.groups is None for part in make(10).split((0.5, 0.5)))


def test_groups_survive_the_file_and_files_without_them_have_no_such_array(tmp_path):
    records = make(groups=[5, 5, 2, 2, 2, 2**40])
    records.save(tmp_path / "with")
    again = ExitRecords.load(tmp_path / "with")
    assert again.groups.tolist() == [5, 5, 2, 2, 2, 2**40]
    assert again.groups.dtype == np.int64
    assert_same(again, records)
    plain = make()
    plain.save(tmp_path / "without")
    arrays = {name: getattr(plain, name) for name in ("confidence", "quality", "final_quality", "exists")}
    meta = {"positions": plain.positions, "heads": plain.heads, "meta": None}
    save_arrays(tmp_path / "before", arrays, RECORDS_FORMAT, 1, meta)
    assert (tmp_path / "without").read_bytes() == (tmp_path / "before").read_bytes()
    assert ExitRecords.load(tmp_path / "before").groups is None


def test_a_file_of_unsound_groups_is_refused(tmp_path):
    plain = make()
    arrays = {name: getattr(plain, name) for name in ("confidence", "quality", "final_quality", "exists")}
    meta = {"positions": plain.positions, "heads": plain.heads, "meta": None}
    arrays["groups"] = np.zeros(5, np.int64)
    save_arrays(tmp_path / "file", arrays, RECORDS_FORMAT, 1, meta)
    with pytest.raises(ArtifactError, match=r"not a set of records \(ExitRecords.groups: .*; record again"):
        ExitRecords.load(tmp_path / "file")
