"""Settings common to all tests: one thread, so that timings and sums do not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def untouched_random_state() -> Iterator[None]:
    """Fails the test if it draws from torch's global random state."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global random state was used"
