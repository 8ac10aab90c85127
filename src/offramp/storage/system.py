"""What the operating system offers beyond the standard library's renames: locks, and two paths exchanged."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows)
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None


def try_lock(descriptor: int) -> bool | None:
    """Whether the lock of an open file or folder was free, and is held now; None where there are no locks.

    It ends with the process, or when the file is closed.
    """
    if fcntl is None:  # pragma: no cover (Windows)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot."""
    if _EXCHANGE is None:
        return False
    if _EXCHANGE(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot
        return False
    raise OSError(code, os.strerror(code), str(other))


def _exchange_function() -> Callable[[bytes, bytes], int] | None:
    """Of Linux renameat2, of macOS renamex_np, told to exchange."""
    if os.name != "posix":  # pragma: no cover (Windows)
        return None
    library = ctypes.CDLL(None, use_errno=True)
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE, which is also RENAME_SWAP
    if hasattr(library, "renameat2"):
        return lambda one, other: library.renameat2(here, one, here, other, swap)
    if hasattr(library, "renamex_np"):  # pragma: no cover (macOS)
        return lambda one, other: library.renamex_np(one, other, swap)
    return None  # pragma: no cover (an older system)


_EXCHANGE = _exchange_function()
