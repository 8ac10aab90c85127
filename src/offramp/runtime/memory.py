"""Keep freed memory: on Linux, large tensors are otherwise given back to the system and taken again.

Above some size the C library's allocator maps fresh pages for each tensor and unmaps them when it is freed;
the kernel clears every page anew. At large batches that can be a quarter of a convolutional network's time,
most of it in the early, large features, where exits save little of it.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)


def keep_memory() -> bool:
    """Make this process keep freed memory for its next tensors. Cannot be undone; safe to call again.

    What a process once used it then keeps until it ends, so its resident size stays at the peak.

    Returns:
        Whether it took effect: only glibc (Linux) has such a setting; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26))
    return all(mallopt(which, value) == 1 for which, value in settings)
