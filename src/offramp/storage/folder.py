"""A folder and its manifest: format, version, and the size and SHA-256 of every other file in it.

Nothing in such a folder is used before the manifest and every file that it lists have been checked.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from offramp.errors import ArtifactError, StorageError
from offramp.storage.atomic import decoded, file_digest, is_file, read_bytes, read_text, storage_errors
from offramp.storage.documents import canonical, dump_document, parse_document

MANIFEST = "manifest.json"
_ATTEMPTS = 10  # to read a folder that is replaced while it is read

_DROPPED_BY_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # nobody misses them

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
        document = self.manifest(folder)
        for name, entry in document["files"].items():
            _check_file(folder, name, entry)
        return document

    def manifest(self, folder: Path) -> dict[str, Any]:
        """The manifest, compared with its own digest alone; an ``ArtifactError`` where it is not as written.

        For what reads each file with ``content``, which compares it then.
        """
        path = folder / MANIFEST
        if not is_file(path):
            found = f"no {MANIFEST}" if path.parent.is_dir() else "no folder"
            raise ArtifactError(
                f"expected {self.what} at {folder}, found {found}; check the path, or write one with "
                f"`{self.made_by}`"
            )
        document = self.unchecked(folder)
        claimed = document.pop("sha256", None)
        if document_digest(document) != claimed:
            raise ArtifactError(f"{path}: does not match its checksum; it was changed, copy the folder again")
        return document

    def copy_files(self, source: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Copy what a manifest lists into another folder; ``ArtifactError``: a file is not as listed."""
        for name, entry in manifest["files"].items():
            _check_name(source, name)
            shutil.copyfile(source / name, folder / name)
            _check_file(folder, name, entry)

    def copy_strangers(self, source: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Copy what lies beside the files of a manifest, as it is; ``StorageError``: it is no file."""
        for path in source.iterdir():
            if path.name == MANIFEST or path.name in manifest["files"]:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, folder / path.name, symlinks=True)
            elif path.is_file() or path.is_symlink():
                shutil.copy2(path, folder / path.name, follow_symlinks=False)
            else:
                raise StorageError(f"{path} is neither a file nor a folder; move it elsewhere")

    def consistent(self, folder: Path, read: Callable[[], T]) -> T:
        """What ``read`` makes of the folder, again where the folder was replaced while it was read.

        Whatever ``read`` uses must be compared with one manifest, by ``content`` or ``read``.
        """
        for _ in range(_ATTEMPTS - 1):
            before = _state(folder)
            try:
                found = read()
            except ArtifactError:
                if _state(folder) == before:
                    raise
                continue
            if _state(folder) == before:
                return found
        return read()

    def unchecked(self, folder: Path) -> dict[str, Any]:
        """The manifest with its table of files, or an ``ArtifactError``; no digest has been compared."""
        document = read_as(
            folder / MANIFEST, lambda text: parse_document(text, self.name, self.version, finite=True)
        )
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
            more = sorted(names.difference(names_of(path), _DROPPED_BY_SYSTEMS))
            reason = f"holds more than {what}: {', '.join(more)}" if more else ""
        except ArtifactError:
            reason = f"exists and is not {what}"
    if reason:
        raise StorageError(f"{path} {reason}; choose another folder or remove it")


def content(folder: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """A file that a manifest lists, read once and compared then; ``ArtifactError``: another one, or none."""
    entry = manifest["files"].get(name)
    if entry is None:
        raise ArtifactError(f"{folder}: {name!r} is missing from the manifest; write the folder again")
    _check_name(folder, name)
    found = read_bytes(folder / name)
    _compare(folder / name, entry, len(found), hashlib.sha256(found).hexdigest())
    return found


def text_content(folder: Path, manifest: Mapping[str, Any], name: str, parse: Callable[[str], T]) -> T:
    """What ``parse`` makes of a text file that a manifest lists, as ``read_as`` does."""
    return _parsed(folder / name, decoded(folder / name, content(folder, manifest, name)), parse)


def read_as(path: Path, parse: Callable[[str], T]) -> T:
    """What ``parse`` makes of a text file; the file is named in its errors, and in those of reading it."""
    return _parsed(path, read_text(path), parse)


def _parsed(path: Path, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; copy it again or write it anew") from error


def document_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a document of plain JSON values, whatever the order of its keys."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    _check_name(folder, name)
    path = folder / name
    size = path.stat().st_size
    _compare(path, entry, size, file_digest(path) if size == entry.get("bytes") else "")


def _check_name(folder: Path, name: str) -> None:
    if Path(name).name != name or not is_file(folder / name):
        raise ArtifactError(f"{folder}: {name!r} is missing; copy the whole folder again")


def _compare(path: Path, entry: Mapping[str, Any], size: int, digest: str) -> None:
    wanted = entry.get("bytes")
    if wanted != size:
        raise ArtifactError(f"{path}: expected {wanted} bytes, got {size}; it is not whole, copy it again")
    if digest != entry.get("sha256"):
        raise ArtifactError(f"{path}: does not match its checksum; it was changed or damaged, copy it again")


def _state(folder: Path) -> object:
    """What changes when a folder is replaced: which one it is, and its manifest."""
    try:
        found = folder.stat()
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None
    try:
        return found.st_dev, found.st_ino, read_bytes(folder / MANIFEST)
    except ArtifactError:
        return found.st_dev, found.st_ino
