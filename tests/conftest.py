"""Settings common to all tests: one thread, so that timings and sums do not depend on the machine.

No test may ask a model hub. torchvision is made importable where it does not fit the torch beside it, here
and, through the folder ``shim`` on PYTHONPATH, in the processes that tests start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import torchvision_operators

collect_ignore = ["helpers", "fixtures"]  # no tests in there; pytest would import helpers a second time

SHIM = str(Path(__file__).parent / "shim")

torch.set_num_threads(1)
torchvision_operators.install()
os.environ["HF_HUB_OFFLINE"] = "1"
if SHIM not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SHIM, os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(autouse=True, scope="session")
def untrained_heads_may_be_recorded() -> Iterator[Any]:
    """Many tests take untrained heads for functions like any other; one asks for the rule itself."""
    from offramp.network import ExitNetwork

    rule = ExitNetwork.untrained
    ExitNetwork.untrained = property(lambda self: False)  # type: ignore[method-assign, assignment]
    yield rule
    ExitNetwork.untrained = rule  # type: ignore[method-assign]


@pytest.fixture
def untrained_heads_are_refused(untrained_heads_may_be_recorded: Any) -> Iterator[None]:
    """As it is for users."""
    from offramp.network import ExitNetwork

    relaxed = ExitNetwork.untrained
    ExitNetwork.untrained = untrained_heads_may_be_recorded  # type: ignore[method-assign]
    yield
    ExitNetwork.untrained = relaxed  # type: ignore[method-assign]


@pytest.fixture
def untouched_random_state() -> Iterator[None]:
    """Fails the test if it draws from torch's global random state."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"


@pytest.fixture
def registry() -> Iterator[None]:
    """Heads registered in the test are forgotten after it."""
    from offramp.heads import registry

    entries = dict(registry._HEADS._entries)
    yield
    registry._HEADS._entries.clear()
    registry._HEADS._entries.update(entries)
