"""How many threads of PyTorch work on a call: one, where there is little to do.

Threads that share a small convolution spend their time waiting for each other; beside another busy process
they wait a hundred times longer than the work takes. One thread is chosen by the work alone, never by the
clock, so that the same run gives the same bits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOG = logging.getLogger("offramp")

SMALL = 2e9
"""Multiply-accumulates of one call, of some tens of operations, below which one thread does it."""

_TOLD = set[str]()
_SET_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def threads_for(macs: float, what: str) -> Iterator[None]:
    """One thread inside for calls of fewer than ``SMALL`` multiply-accumulates, in the calling thread.

    A number of threads that the user set, in the environment or by ``torch.set_num_threads``, stays. ``what``
    names the work in the log.
    """
    before = torch.get_num_threads()
    if before == 1 or macs >= SMALL or _chosen_by_user(before):
        yield
        return
    if what not in _TOLD:
        _TOLD.add(what)
        _LOG.info(
            "%s: one thread; %.3g million multiply-accumulates a call are too few to share", what, macs / 1e6
        )
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def advise_threads(macs: float, what: str) -> None:
    """Say in the log, once, below which batch size one thread is enough.

    ``macs`` are the multiply-accumulates of a sample. For calls whose threads are the caller's to choose.
    """
    threads = torch.get_num_threads()
    if what in _TOLD or not 1 <= macs < SMALL or threads == 1 or _chosen_by_user(threads):
        return
    _TOLD.add(what)
    _LOG.info(
        "%s: %.3g million multiply-accumulates a sample; for batches below %d torch.set_num_threads(1) is "
        "faster where other processes run",
        what,
        macs / 1e6,
        int(SMALL / macs),
    )


def _chosen_by_user(threads: int) -> bool:
    """Whether it is not what PyTorch chooses by itself: one per processor, or per two."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return any(name in os.environ for name in _SET_BY_USER) or threads not in (there, -(-there // 2))
