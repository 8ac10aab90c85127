"""Two hundred kills of a save that replaces an artifact: whole before and after, and nothing beside it."""

from __future__ import annotations

import pytest

import kills
import offramp
import small

pytestmark = pytest.mark.long


class Made:
    """A network and what is saved with it."""

    def __init__(self) -> None:
        self.net = small.network()
        self.costs = offramp.measure_cost(self.net)
        records = offramp.record_outputs(self.net, small.loader())
        found = offramp.search(records, self.costs, regularise=None, step=None)
        self.frontier = offramp.Frontier([next(config for config in found if config.choices)])

    def save(self, path):
        offramp.save(path, self.net, self.frontier, self.costs)


def test_two_hundred_kills(tmp_path):
    made, path, killed = Made(), tmp_path / "artifact", 0
    old = made.frontier[0].choices[0].threshold
    made.save(path)
    for at in [*range(56)] * 4:
        killed += kills.killed_save(made, path, at)
        assert offramp.load(path, small.model())[1][0].choices[0].threshold in (old, kills.NEW)
        made.save(path)
        assert [each.name for each in tmp_path.iterdir()] == ["artifact"]
    assert killed >= 200
