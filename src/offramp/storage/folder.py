"""A folder and its manifest: format, version, and the size and SHA-256 of every other file in it.

Nothing in such a folder is used before the manifest and every file that it lists have been checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from offramp.errors import ArtifactError, StorageError
from offramp.storage.atomic import file_digest, read_text, storage_errors
from offramp.storage.documents import canonical, dump_document, parse_document

MANIFEST = "manifest.json"

T = TypeVar("T")


@dataclass(frozen=True)
class FolderFormat:
    """A kind of folder with a manifest, which messages call ``what`` ("an artifact").

    ``version`` is the newest that this release reads, and the one it writes; ``made_by`` the command that
    writes such a folder; ``sort_keys`` sorts the manifest's keys, else they stay in the order given.
    """

    what: str
    name: str
    version: int
    made_by: str
    sort_keys: bool = False

    def write(self, folder: Path, description: Mapping[str, Any]) -> None:
        """Write the manifest: a description of the folder, and every other file in it."""
        document = {"format": self.name, "version": self.version, **description}
        document["files"] = {
            file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)}
            for file in sorted(folder.iterdir())
            if file.name != MANIFEST
        }
        document["sha256"] = document_digest(document)
        text = dump_document(document, sort_keys=self.sort_keys)
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    def read(self, folder: Path) -> dict[str, Any]:
        """The manifest; it and every file it lists have been compared with their digests.

        An ``ArtifactError`` if a file is missing, damaged or outside the folder, or format or version wrong.
        """
        path = folder / MANIFEST
        if not path.is_file():
            found = f"no {MANIFEST}" if folder.is_dir() else "no folder"
            raise ArtifactError(
                f"expected {self.what} at {folder}, found {found}; check the path, or write one with "
                f"`{self.made_by}`"
            )
        document = self.unchecked(folder)
        claimed = document.pop("sha256", None)
        if document_digest(document) != claimed:
            raise ArtifactError(f"{path}: does not match its checksum; it was changed, copy the folder again")
        for name, entry in document["files"].items():
            _check_file(folder, name, entry)
        return document

    def unchecked(self, folder: Path) -> dict[str, Any]:
        """The manifest with its table of files, or an ``ArtifactError``; no digest has been compared."""
        document = read_as(folder / MANIFEST, lambda text: parse_document(text, self.name, self.version))
        files = document.get("files")
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise ArtifactError(
                f"{folder / MANIFEST}: its list of files is missing or wrong; write the folder again"
            )
        return document

    def check_replaceable(self, path: Path) -> None:
        """Refuse, with a ``StorageError``, a path that holds anything else; worth it before long work."""
        check_replaceable(path, self.what, lambda folder: {MANIFEST, *self.unchecked(folder)["files"]})


def check_replaceable(path: Path, what: str, names_of: Callable[[Path], Iterable[str]]) -> None:
    """Refuse, with a ``StorageError``, a path that holds anything but one kind of folder, ``what`` in words.

    Nothing there, or an empty folder, is fine. ``names_of`` tells everything that belongs to such a folder,
    or raises an ``ArtifactError`` if it is none.
    """
    with storage_errors(path):
        if not path.exists():
            return
        names = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    reason = ""
    if names is None:
        reason = "is a file"
    elif names:
        try:
            more = sorted(names.difference(names_of(path)))
            reason = f"holds more than {what}: {', '.join(more)}" if more else ""
        except ArtifactError:
            reason = f"exists and is not {what}"
    if reason:
        raise StorageError(f"{path} {reason}; choose another folder or remove it")


def read_as(path: Path, parse: Callable[[str], T]) -> T:
    """What ``parse`` makes of a text file; the file is named in its errors, and in those of reading it."""
    text = read_text(path)
    try:
        return parse(text)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; copy it again or write it anew") from error


def document_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document of plain JSON values, whatever the order of its keys."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"{folder}: {name!r} is missing; copy the whole folder again")
    wanted, got = entry.get("bytes"), path.stat().st_size
    if wanted != got:
        raise ArtifactError(f"{path}: expected {wanted} bytes, got {got}; it is not whole, copy it again")
    if file_digest(path) != entry.get("sha256"):
        raise ArtifactError(f"{path}: does not match its checksum; it was changed or damaged, copy it again")
