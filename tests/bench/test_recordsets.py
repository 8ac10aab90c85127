"""The record sets of the benchmarks: their generator, and what is done to stored ones."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.search import recordsets
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.records import ExitRecords

SOURCE = Path(recordsets.__file__)

ARRAYS = ("confidence", "quality", "final_quality", "exists", "final_confidence")


@pytest.fixture(scope="module")
def made():
    return recordsets.generated(3, 6000, input_exit=True)


def errors_correlate(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_needs_no_torch():
    code = f"import runpy, sys; runpy.run_path({str(SOURCE)!r}); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_same_seed_same_set():
    (first, costs), (again, costs_again) = (recordsets.generated(5, 300, positions=6) for _ in range(2))
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert np.array_equal(costs.heads, costs_again.heads)


def test_another_seed_is_another_network():
    (first, costs), (other, other_costs) = (recordsets.generated(s, 300, positions=6) for s in (5, 6))
    assert not np.array_equal(first.confidence, other.confidence)
    assert not np.array_equal(costs.backbone, other_costs.backbone)


def test_network_does_not_depend_on_the_number_of_samples():
    (_, costs), (_, more) = (recordsets.generated(5, n, positions=6) for n in (10, 500))
    assert np.array_equal(costs.backbone, more.backbone)
    assert np.array_equal(costs.heads, more.heads)


@pytest.mark.parametrize(("positions", "heads", "samples"), [(1, 1, 1), (2, 1, 7), (9, 5, 40)])
@pytest.mark.parametrize("input_exit", [False, True])
def test_shapes(positions, heads, samples, input_exit):
    records, costs = recordsets.generated(0, samples, positions=positions, heads=heads, input_exit=input_exit)
    shape = (positions, heads + input_exit, samples)
    assert records.confidence.shape == records.quality.shape == shape
    assert records.confidence.dtype == np.float32
    assert costs.heads.shape == records.exists.shape == shape[:2]
    assert records.exists[1:, :heads].all()
    assert not records.exists[0, :heads].any()
    assert np.array_equal(costs.heads > 0, records.exists)


@pytest.mark.parametrize("name", ["samples", "positions", "heads"])
def test_refuses_less_than_one(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        recordsets.generated(0, **{"samples": 5, name: 0})


def test_quality_rises_with_depth_and_ever_less(made):
    records, _ = made
    mean = records.quality[:, :4].mean(2)
    assert (mean[1:10].mean(0) < mean[10:18].mean(0)).all()
    assert (mean[10:18].mean(0) < mean[18:].mean(0)).all()
    assert (mean[9] - mean[1] > mean[26] - mean[18]).all()
    assert 0.55 < mean[1, 0] < 0.65
    assert 0.92 < records.final_quality.mean() < 0.96


def test_larger_heads_are_better_and_more_expensive(made):
    records, costs = made
    mean = records.quality[1:14, :4].mean((0, 2))
    assert (np.diff(mean) > 0).all()
    share = costs.heads[1:, :4] / costs.full
    assert (np.diff(share, axis=1) > 0).all()
    assert 1e-4 < share.min() < 3e-4
    assert 1e-2 < share.max() < 2.1e-2


def test_exits_share_one_evidence(made):
    records, _ = made
    for c in range(4):
        right = records.quality[:, c]
        near = [errors_correlate(right[p], right[p + 1]) for p in range(1, 26)]
        assert min(near) > 0.65
        assert errors_correlate(right[1], right[26]) < 0.35
        assert errors_correlate(right[26], records.final_quality) > 0.85
        far, close = (np.corrcoef(records.confidence[1, c], records.confidence[p, c])[0, 1] for p in (20, 2))
        assert far < close


def test_confidence_ranks_errors_as_networks_do(made):
    records, _ = made
    found = [
        recordsets.auroc(records.confidence[p, c], records.quality[p, c]) for p in (1, 26) for c in (0, 3)
    ]
    assert min(found) > 0.75
    assert max(found) < 0.95
    assert records.confidence[1:, :4].min() > 0
    assert records.confidence[1:, :4].max() < 1
    assert recordsets.auroc(records.final_confidence, records.final_quality) > 0.88


def test_confident_mistakes_are_common_to_all(made):
    records, _ = (
        made  # Gaussian evidence alone would let confident exits be right where the full model is wrong
    )
    for c in range(4):
        sure = np.argsort(-records.confidence[14, c])[:3600]
        failed = records.final_quality[sure] == 0
        assert failed.sum() > 5
        assert records.quality[14, c, sure][failed].mean() < 0.5


def test_input_exit_is_strong_and_follows_the_same_difficulty(made):
    records, costs = made
    assert records.heads[-1] == "model"
    assert records.exists[:, 4].tolist() == [True] + [False] * 26
    assert costs.heads[0, 4] == pytest.approx(0.095 * costs.full)
    assert 0.89 < records.quality[0, 4].mean() < 0.94
    assert 0.45 < errors_correlate(records.quality[0, 4], records.final_quality) < 0.75


def test_without_the_input_exit_the_rest_is_the_same():
    (bare, costs), (wide, _) = (recordsets.generated(1, 50, positions=5, input_exit=w) for w in (False, True))
    assert np.array_equal(wide.confidence[:, :4], bare.confidence)
    assert bare.heads == wide.heads[:4]
    assert costs.heads.shape == (5, 4)


def tiny():
    exists = np.array([[False, False], [True, False], [True, True]])
    rng = np.random.default_rng(0)
    records = ExitRecords(
        rng.random((3, 2, 6)),
        rng.integers(0, 2, (3, 2, 6)),
        np.ones(6),
        exists,
        ("input", "a", "b"),
        ("h", "k"),
    )
    return records, CostTable([0, 10, 20, 40], 2.0 * exists, "macs", {"device": "none"})


def test_charged_adds_a_share_to_every_head_there_is():
    records, costs = tiny()
    charged = recordsets.charged(costs, 0.1)
    assert charged.heads.tolist() == [[0, 0], [6, 0], [6, 6]]
    assert np.array_equal(charged.backbone, costs.backbone)
    assert charged.meta == {"device": "none", "charged": 0.1}
    config = ExitConfig((ExitChoice("a", "h", 2.0), ExitChoice("b", "k", 2.0)))  # nobody leaves
    assert evaluate(records, charged, config).cost - evaluate(records, costs, config).cost == pytest.approx(8)


def test_charged_takes_which_heads_there_are():
    _, costs = tiny()
    exists = np.zeros((3, 2), bool)
    exists[1, 1] = True
    assert recordsets.charged(costs, 0.05, exists).heads.tolist() == [[0, 0], [2, 2], [2, 2]]


@pytest.mark.parametrize("share", [-0.1, float("nan"), [0.1, 0.2]])
def test_charged_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match="share: expected a number"):
        recordsets.charged(tiny()[1], share)


def test_charged_refuses_another_shape():
    with pytest.raises(ValueError, match=r"exists: expected shape \(3, 2\), got \(2, 2\)"):
        recordsets.charged(tiny()[1], 0.1, np.ones((2, 2), bool))


def test_with_input_exit_adds_one_exit_and_leaves_the_others():
    records, costs = tiny()
    sure, right = np.linspace(0, 1, 6), np.array([0, 1, 1, 0, 1, 1])
    wide, wide_costs = recordsets.with_input_exit(records, costs, sure, right, 7.0, name="small")
    assert wide.heads == ("h", "k", "small")
    assert wide.exists[:, 2].tolist() == [True, False, False]
    assert np.array_equal(wide.confidence[:, :2], records.confidence)
    assert wide.confidence[0, 2] == pytest.approx(sure)
    assert wide_costs.heads.tolist() == [[0, 0, 7], [2, 0, 0], [2, 2, 0]]
    outcome = evaluate(wide, wide_costs, ExitConfig((ExitChoice("input", "small", -1.0),)))
    assert outcome.quality == pytest.approx(right.mean())
    assert outcome.cost == 7


def test_with_input_exit_adds_its_outputs_to_the_others():
    records, costs = tiny()
    outputs = np.random.default_rng(1).normal(size=(3, 2, 6, 10)).astype(np.float32)
    own = np.arange(60).reshape(6, 10)
    known = replace(records, logits=outputs)
    wide, _ = recordsets.with_input_exit(known, costs, np.ones(6), np.ones(6), 7.0, logits=own)
    assert wide.logits.shape == (3, 3, 6, 10)
    assert np.array_equal(wide.logits[:, :2], outputs)
    assert np.array_equal(wide.logits[0, 2], own)
    assert not wide.logits[1:, 2].any()


@pytest.mark.parametrize("held", [False, True])
def test_with_input_exit_keeps_no_outputs_that_only_some_exits_have(held):
    records, costs = tiny()
    known = replace(records, logits=np.zeros((3, 2, 6, 10))) if held else records
    own = None if held else np.zeros((6, 10))
    wide, _ = recordsets.with_input_exit(known, costs, np.ones(6), np.ones(6), 7.0, logits=own)
    assert wide.logits is None


def test_with_input_exit_refuses_outputs_of_another_shape():
    records, costs = tiny()
    known = replace(records, logits=np.zeros((3, 2, 6, 10)))
    with pytest.raises(ValueError, match=r"logits: expected shape \(6, 10\), got \(6, 9\)"):
        recordsets.with_input_exit(known, costs, np.ones(6), np.ones(6), 1.0, logits=np.zeros((6, 9)))


def test_with_input_exit_refuses_other_shapes_and_names_taken():
    records, costs = tiny()
    with pytest.raises(ValueError, match=r"quality: expected shape \(6,\), got \(5,\)"):
        recordsets.with_input_exit(records, costs, np.ones(6), np.ones(5), 1.0)
    with pytest.raises(ValueError, match="name: expected a new one, got 'h'"):
        recordsets.with_input_exit(records, costs, np.ones(6), np.ones(6), 1.0, name="h")


def test_store_and_load(tmp_path):
    records, costs = recordsets.generated(2, 30, positions=4, input_exit=True)
    records = replace(records, logits=np.random.default_rng(0).normal(size=(4, 5, 30, 3)))
    recordsets.store(tmp_path / "a" / "set", records, costs)
    again, costs_again = recordsets.load(tmp_path / "a" / "set")
    for name in (*ARRAYS, "logits"):
        assert np.array_equal(getattr(again, name), getattr(records, name))
    assert (again.positions, again.heads, again.meta) == (records.positions, records.heads, records.meta)
    assert np.array_equal(costs_again.heads, costs.heads)
    assert np.array_equal(costs_again.backbone, costs.backbone)


def test_load_says_how_to_make_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no such set; make it with"):
        recordsets.load(tmp_path)


def test_auroc_by_counting_pairs():
    rng = np.random.default_rng(0)
    sure, right = rng.integers(0, 5, 40), rng.random(40) < 0.6
    pairs = [np.sign(a - b) for a in sure[right] for b in sure[~right]]
    assert recordsets.auroc(sure, right) == pytest.approx((np.mean(pairs) + 1) / 2)


def test_describe_compares_neighbours(made):
    rows = recordsets.describe(made[0])
    assert [row["position"] for row in rows[:3]] == ["block1", "block14", "block26"]
    assert rows[-1]["head"] == "model"
    assert rows[-1]["agree"] == 1  # it has no neighbour but itself
    right = made[0].quality[:, 0]
    assert rows[0]["accuracy"] == pytest.approx(right[1].mean())
    assert rows[0]["agree"] == pytest.approx((right[1] == right[2]).mean())
    change = (right[1] - made[0].final_quality)[np.argsort(-made[0].confidence[1, 0])[:3000]]
    assert rows[0]["won"] - rows[0]["lost"] == pytest.approx(change.mean())
    assert rows[0]["lost"] == pytest.approx((change < 0).mean())
    assert rows[2]["agree"] == pytest.approx((right[26] == right[25]).mean())
