"""Files are whole or absent, and nothing is left lying beside them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from offramp.errors import ArtifactError, InputError, StorageError
from offramp.storage import arrays as arrays_module, atomic
from offramp.storage.arrays import arrays_digest, load_arrays, save_arrays
from offramp.storage.atomic import atomic_folder, atomic_write, file_digest, read_text, write_text
from offramp.storage.documents import canonical, parse_document
from offramp.storage.lock import scratch

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([True, False]),
    "none": np.zeros((0, 2)),
}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_whole_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent  # a rename within one folder is atomic
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert listing(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:  # noqa: PT012 (the block is the subject)
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_the_old_file_stays_readable_until_it_is_replaced(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader, atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_two_writers_do_not_share_a_temporary(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one ends last
    assert listing(tmp_path) == ["file.txt"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    path, order = tmp_path / "file.txt", []
    synced = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(path.exists()), synced(fd))[1])
    write_text(path, "x")
    assert order[0] is False


def test_a_path_below_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*a file is where a folder is expected"):
        write_text(tmp_path / "file" / "below.txt", "x")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_the_file_is_a_storage_error(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match=r"a file is where a folder is expected, or the reverse"):
        write_text(tmp_path / "taken", "x")
    assert listing(tmp_path) == ["taken"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "no space left on the device: .*file.txt; free some"),
        (errno.EDQUOT, "no space left on the device: .*file.txt; free some"),
        (errno.EACCES, "permission denied: .*file.txt; choose a folder you may write to"),
        (errno.EROFS, "permission denied: .*file.txt; choose a folder you may write to"),
        (errno.EIO, "cannot write .*file.txt: Input/output error"),
    ],
)
def test_the_systems_refusals_say_what_to_do(tmp_path, monkeypatch, code, advice):
    def refuse(_path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "flush", refuse)
    with pytest.raises(StorageError, match=advice) as caught:
        write_text(tmp_path / "file.txt", "x")
    assert isinstance(caught.value, OSError)
    assert caught.value.__cause__.errno == code
    assert listing(tmp_path) == []


def test_a_storage_error_inside_is_not_wrapped_again(tmp_path):
    original = StorageError("the first message")
    with pytest.raises(StorageError) as caught, atomic_write(tmp_path / "file.txt"):
        raise original
    assert caught.value is original


@pytest.mark.parametrize("path", ["", ".", "/", "a\0b", "a\0b/c"])
def test_a_path_without_a_name_is_refused(path):
    with pytest.raises(StorageError, match=r"expected a path that ends in a name"):
        write_text(Path(path), "x")
    if "\0" in path:
        with pytest.raises(StorageError, match=r"expected a path that ends in a name"):
            atomic_folder(Path(path)).__enter__()


def test_scratch_is_removed_and_a_folder_of_the_user_kept(tmp_path):
    with scratch(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.is_dir()
    with scratch(None) as folder:
        (folder / "x").touch()
    assert not folder.exists()


def test_text_round_trips(tmp_path):
    write_text(tmp_path / "t.txt", "λ → 0.5\n")
    assert read_text(tmp_path / "t.txt") == "λ → 0.5\n"


def test_unreadable_text_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected a file at .*missing\.txt, found none; check the path"):
        read_text(tmp_path / "missing.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match=r"cannot read .*binary"):
        read_text(tmp_path / "binary")
    with pytest.raises(ArtifactError, match=r"cannot read"):
        read_text(tmp_path)


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"offramp")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"offramp").hexdigest()


def test_arrays_digest_depends_on_everything_but_the_order_of_names_and_memory():
    base = arrays_digest(ARRAYS, "meta")
    assert arrays_digest(dict(reversed(ARRAYS.items())), "meta") == base
    assert arrays_digest({**ARRAYS, "a": np.asfortranarray(ARRAYS["a"])}, "meta") == base
    a = ARRAYS["a"]
    others = [a + 1, a.reshape(3, 2), a.view(np.int32), a.astype(np.float64)]
    changed = [arrays_digest({**ARRAYS, "a": other}, "meta") for other in others]
    changed += [arrays_digest(ARRAYS, "other"), arrays_digest({"c": a, "b": ARRAYS["b"]}, "meta")]
    assert len({base, *changed}) == 7


def test_arrays_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    save_arrays(path, ARRAYS, "offramp.test", 2, {"names": ["é", "$"]})
    arrays, meta = load_arrays(path, "offramp.test", 3)
    assert meta == {"names": ["é", "$"]}
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_arrays(tmp_path / name, ARRAYS, "offramp.test", 1, {"z": 1, "a": 2})
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ArtifactError, match=r"expected a file written by offramp \(offramp.test\)"):
        load_arrays(path, "offramp.test", 1)
    path.write_text("text")
    with pytest.raises(ArtifactError, match=r"not a whole safetensors file"):
        load_arrays(path, "offramp.test", 1)
    with pytest.raises(ArtifactError, match=r"found none"):
        load_arrays(tmp_path, "offramp.test", 1)
    save_arrays(path, ARRAYS, "offramp.other", 1, {})
    with pytest.raises(ArtifactError, match=r"expected an offramp.test document, got format 'offramp.other'"):
        load_arrays(path, "offramp.test", 1)
    save_arrays(path, ARRAYS, "offramp.test", 2, {})
    with pytest.raises(ArtifactError, match=r"version 2 is newer than this release reads \(1\); upgrade"):
        load_arrays(path, "offramp.test", 1)


def test_a_failed_save_of_arrays_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    save_arrays(path, ARRAYS, "offramp.test", 1, {})
    before = file_digest(path)

    def full(_arrays, temporary, _meta):
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays_module, "save_file", full)
    with pytest.raises(StorageError, match=r"no space left"):
        save_arrays(path, ARRAYS, "offramp.test", 1, {})
    assert file_digest(path) == before
    assert listing(tmp_path) == ["x"]


def test_a_refusal_by_the_safetensors_writer_is_a_storage_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise arrays_module.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(arrays_module, "save_file", refuse)
    with pytest.raises(StorageError, match=r"No space left on device.*check free space and permissions"):
        save_arrays(tmp_path / "x", ARRAYS, "offramp.test", 1, {})


def test_no_changed_byte_goes_unnoticed(tmp_path):
    path = tmp_path / "x"
    save_arrays(path, ARRAYS, "offramp.test", 1, {"names": ["a", "b"]})
    whole = path.read_bytes()
    expected, _ = load_arrays(path, "offramp.test", 1)
    accepted = 0
    for at in range(len(whole)):
        for mask in (0x01, 0x20, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            try:
                arrays, meta = load_arrays(path, "offramp.test", 1)
            except ArtifactError:
                continue
            accepted += 1  # only where a byte means nothing, such as padding
            assert meta == {"names": ["a", "b"]}
            assert arrays_digest(arrays, "") == arrays_digest(expected, "")
    assert accepted < 0.02 * 3 * len(whole)


def test_no_truncated_or_lengthened_file_is_read(tmp_path):
    path = tmp_path / "x"
    save_arrays(path, ARRAYS, "offramp.test", 1, {})
    whole = path.read_bytes()
    for stop in range(len(whole)):
        path.write_bytes(whole[:stop])
        with pytest.raises(ArtifactError):
            load_arrays(path, "offramp.test", 1)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError, match=r"not a whole safetensors file"):
        load_arrays(path, "offramp.test", 1)


def test_whole_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with atomic_folder(path) as temporary:
            (temporary / name).write_text(name)
        assert listing(path) == [name]
        assert listing(path.parent) == ["folder"]


def test_file_digest_of_what_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ArtifactError, match=r"cannot read .*; copy it again"):
            file_digest(path)


def test_text_that_has_no_bytes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*expected text that is valid Unicode"):
        write_text(tmp_path / "t.txt", "half a pair: \ud800")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "array",
    [np.array(3.5), np.arange(3, dtype=">f4"), np.array(7, dtype=">i8"), np.arange(6.0).reshape(2, 3).T],
    ids=["0-d", "big-endian", "both", "Fortran order"],
)
def test_odd_arrays_round_trip(tmp_path, array):
    save_arrays(tmp_path / "x", {"a": array}, "offramp.test", 1, {})
    (again,) = load_arrays(tmp_path / "x", "offramp.test", 1)[0].values()
    np.testing.assert_array_equal(again, array)
    assert again.shape == array.shape
    assert again.dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("meta", [{"a": ...}, {"a": float("inf")}, {("a",): 1}], ids=str)
def test_meta_that_is_not_json_is_refused(tmp_path, meta):
    with pytest.raises(InputError, match=r"meta: expected plain JSON values, got one that is not"):
        save_arrays(tmp_path / "x", ARRAYS, "offramp.test", 1, meta)
    assert listing(tmp_path) == []


def forge(path, header, body=b""):
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "BF16", "X9", 3])
def test_a_header_with_a_type_numpy_lacks_is_refused(tmp_path, dtype):
    size = 2 if dtype == "BF16" else 1
    document = canonical({"format": "offramp.test", "version": 1, "meta": {}, "sha256": ""})
    header = {
        "__metadata__": {"offramp": document},
        "a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]},
    }
    forge(tmp_path / "x", header, b"\0" * size)
    with pytest.raises(ArtifactError):
        load_arrays(tmp_path / "x", "offramp.test", 1)


@pytest.mark.parametrize("extra", [{}, {"meta": None}, {"meta": [1]}, {"meta": "text"}], ids=str)
def test_a_valid_checksum_over_no_meta_is_refused(tmp_path, extra):
    document = {"format": "offramp.test", "version": 1, **extra}
    document["sha256"] = arrays_digest({"a": np.zeros(2)}, canonical(document))
    save_file({"a": np.zeros(2)}, tmp_path / "x", {"offramp": canonical(document)})
    with pytest.raises(ArtifactError, match=r"expected meta data, got .*; write it again"):
        load_arrays(tmp_path / "x", "offramp.test", 1)


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, '{"format": "x", "version": ' + "1" * 5000 + "}", "[" * 100_000, "NaN", '"x"', "\ud800"],
)
def test_text_that_is_no_document_is_refused(text):
    with pytest.raises(ArtifactError, match=r"expected an offramp.test document, got"):
        parse_document(text, "offramp.test", 1)


@pytest.mark.parametrize("version", [True, 0, -1, 1.0, "1", None, [1]])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(ArtifactError, match=r"offramp.test: expected a version number, got"):
        parse_document(json.dumps({"format": "offramp.test", "version": version}), "offramp.test", 1)
    with pytest.raises(ArtifactError, match=r"version 1000000000000000000000 is newer"):
        parse_document('{"format": "offramp.test", "version": 1000000000000000000000}', "offramp.test", 1)
