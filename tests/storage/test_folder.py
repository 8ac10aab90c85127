"""A folder and its manifest: nothing in it is used unchecked, and nothing else is replaced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import ArtifactError, InputError, StorageError
from offramp.storage.folder import MANIFEST, FolderFormat, document_digest, read_as

FORMAT = FolderFormat(what="a box", name="offramp.box", version=2, made_by="offramp pack")


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A folder of two files and a manifest."""
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "b.txt").write_bytes(b"second")
    (folder / "a.txt").write_bytes(b"first")
    FORMAT.write(folder, {"z": 1, "colour": ["red"]})
    return folder


def rewrite(folder: Path, **fields: Any) -> None:
    """Change the manifest and its checksum, as somebody who knows it would."""
    document = json.loads((folder / MANIFEST).read_text()) | fields
    document.pop("sha256")
    (folder / MANIFEST).write_text(json.dumps({**document, "sha256": document_digest(document)}))


def test_what_is_written_is_read(box: Path) -> None:
    document = FORMAT.read(box)
    assert list(document) == ["format", "version", "z", "colour", "files"]
    assert document["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in {"a.txt": b"first", "b.txt": b"second"}.items()
    }


def test_keys_are_sorted_where_the_format_says_so(box: Path) -> None:
    ordered = FolderFormat(what="a box", name="offramp.box", version=2, made_by="", sort_keys=True)
    ordered.write(box, {"z": {"b": 1, "a": 2}, "colour": 1})
    document = json.loads((box / MANIFEST).read_text())
    assert list(document) == sorted(document)
    assert list(document["z"]) == ["a", "b"]
    assert FORMAT.read(box)["z"] == {"a": 2, "b": 1}


def test_what_json_has_no_value_for_is_refused(box: Path) -> None:
    with pytest.raises(InputError, match="expected plain JSON values"):
        FORMAT.write(box, {"z": float("nan")})


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", "", "a\0b", "none.txt"])
def test_a_path_outside_the_folder_is_not_read(box: Path, name: str) -> None:
    (box.parent / "outside").write_bytes(b"x")
    rewrite(box, files={name: {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}})
    with pytest.raises(ArtifactError, match="is missing; copy the whole folder again"):
        FORMAT.read(box)


@pytest.mark.parametrize("files", [None, [], {"a.txt": 1}, {"a.txt": None}], ids=str)
def test_a_list_of_files_that_is_none_is_refused(box: Path, files: Any) -> None:
    rewrite(box, files=files)
    with pytest.raises(ArtifactError, match=r"manifest.json: its list of files is missing or wrong; write"):
        FORMAT.read(box)
    with pytest.raises(StorageError, match="exists and is not a box; choose another folder or remove it"):
        FORMAT.check_replaceable(box)


def test_damage_is_refused(box: Path, tmp_path: Path) -> None:
    (box / "a.txt").write_bytes(b"First")
    with pytest.raises(ArtifactError, match=r"a.txt: does not match its checksum; it was changed or damaged"):
        FORMAT.read(box)
    (box / "a.txt").write_bytes(b"fir")
    with pytest.raises(ArtifactError, match=r"a.txt: expected 5 bytes, got 3; it is not whole, copy it"):
        FORMAT.read(box)
    (box / MANIFEST).write_text((box / MANIFEST).read_text().replace("red", "blue"))
    with pytest.raises(ArtifactError, match=r"manifest.json: does not match its checksum; it was changed"):
        FORMAT.read(box)
    (box / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest.json: expected an offramp.box document, .*; copy it"):
        FORMAT.read(box)
    (box / MANIFEST).unlink()
    advice = "check the path, or write one with `offramp pack`"
    with pytest.raises(ArtifactError, match=rf"expected a box at .*, found no manifest.json; {advice}"):
        FORMAT.read(box)
    with pytest.raises(ArtifactError, match=r"expected a box at .*nowhere, found no folder; check the path"):
        FORMAT.read(tmp_path / "nowhere")


def test_only_such_a_folder_is_replaced(box: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (box / "a.txt").unlink()  # a damaged one may be replaced
    for path in (box, tmp_path / "empty", tmp_path / "nowhere"):
        FORMAT.check_replaceable(path)
    (box / "mine.txt").touch()
    (box / "also").mkdir()
    (tmp_path / "file").touch()
    for path, message in (
        (box, "holds more than a box: also, mine.txt; choose another folder or remove it"),
        (tmp_path, "exists and is not a box; choose"),
        (tmp_path / "file", "file is a file; choose"),
    ):
        with pytest.raises(StorageError, match=message):
            FORMAT.check_replaceable(path)


def test_a_reader_names_the_file(tmp_path: Path) -> None:
    def refuse(text: str) -> str:
        raise ArtifactError(f"not {text}")

    (tmp_path / "f").write_text("good")
    with pytest.raises(ArtifactError, match=r"f: not good; copy it again or write it anew"):
        read_as(tmp_path / "f", refuse)
    assert read_as(tmp_path / "f", str.upper) == "GOOD"
