"""The joint cost of several tasks: each sample pays the backbone once, to its deepest exit."""

from __future__ import annotations

import numpy as np
import pytest

import offramp
from multitask_nets import Setting
from offramp import ExitChoice, ExitConfig
from offramp.core.evaluate import evaluate_together
from offramp.errors import InputError


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def test_the_joint_cost_by_hand():
    """Three samples: each pays the backbone to the deeper of its two exits, and all heads passed."""
    backbone = [0.0, 10, 30, 100]

    def records(confidence):
        one = np.array(confidence, np.float32)[:, None]  # (P, 1, N)
        exists = np.array([[False], [True], [True]])
        return offramp.ExitRecords(one, one, np.ones(3, np.float32), exists, ("input", "a", "b"), ("h",))

    what = records([[0, 0, 0], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1]])  # leaves at a, b, the output
    where = records([[0, 0, 0], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9]])  # at a, a, b
    config = ExitConfig([ExitChoice("a", "h", 0.5), ExitChoice("b", "h", 0.5)])
    costs = {
        "what": offramp.CostTable(backbone, [[0.0], [1], [2]], "macs"),
        "where": offramp.CostTable(backbone, [[0.0], [3], [4]], "macs"),
    }
    joint = evaluate_together({"what": what, "where": where}, costs, {"what": config, "where": config})
    assert joint.position.tolist() == [1, 2, 3]
    assert joint.cost * 3 == pytest.approx((10 + 1 + 3) + (30 + 3 + 3) + (100 + 3 + 7))
    assert joint.separate_cost * 3 == pytest.approx((10 + 1) + (30 + 3) + (100 + 3) + (10 + 3) * 2 + (30 + 7))
    assert joint.relative_cost == pytest.approx(joint.cost / 100)
    assert joint.share == pytest.approx(joint.cost / joint.separate_cost)
    alone = evaluate_together({"what": what}, costs, {"what": config})
    assert alone.cost == alone.separate_cost == offramp.evaluate(what, costs["what"], config).cost
    assert joint.tasks["what"].quality == alone.tasks["what"].quality


def test_records_that_cannot_be_put_together(setting):
    records, costs, configs = setting.records, setting.costs, setting.full({})
    one = {"what": records["what"]}
    for r, c, k, message in [
        (records, costs, {}, "expected a configuration for at least one task, got none"),
        (one, costs, configs, "task 'where' has a configuration but no records; there are records of 'what'"),
        (records, {}, configs, "task 'what' has a configuration but no costs; there are costs of none"),
        (
            {**records, "much": records["much"].subset(np.arange(9))},
            costs,
            configs,
            "the same samples, got 150 of 'what' and 9 of 'much'",
        ),
        (
            records,
            {**costs, "where": offramp.CostTable(2 * costs["where"].backbone, costs["where"].heads, "macs")},
            configs,
            "'where' and 'what' have other positions or backbone costs",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate_together(r, c, k)
