"""Errors a user can meet. Every message says what was expected, what came, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class OfframpError(Exception):
    """Root of all errors raised on purpose by Offramp."""


class InputError(OfframpError, ValueError):
    """An argument, a batch or a data set is not what the call needs."""


class PartitionError(OfframpError):
    """The model cannot be exported, or cannot be cut where asked."""


class ArtifactError(OfframpError):
    """A file written by Offramp is missing, damaged, of another model or of a newer version."""


class StorageError(OfframpError, OSError):
    """A file or folder cannot be written: no permission, no space, or it belongs to something else."""


class MissingExtraError(OfframpError, ImportError):
    """An optional dependency is not installed."""


class QueueFull(OfframpError):  # noqa: N818 (named like the one in the standard library)
    """A bounded queue is full: wait, or send less."""


class Expired(OfframpError):  # noqa: N818
    """A deadline passed before the answer was there."""


class FewSamplesWarning(UserWarning):
    """The samples are too few for what was asked of them, so the answer is the cautious one."""


@contextmanager
def needs_extra(name: str, why: str) -> Iterator[None]:
    """Imports of an extra of this package: one that fails is a ``MissingExtraError`` that says ``why``."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f'{why}: pip install "offramp[{name}]"') from error
