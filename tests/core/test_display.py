"""How data looks: one line in a terminal, a small table in a notebook, a data frame."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

from dials import dial_costs, dial_records, honest_frontier, in_sample_frontier
from offramp.core.batch_costs import BatchCosts
from offramp.core.certificate import Certificate, Guarantee
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable, single_exits
from offramp.core.display import evenly, html_table, percent, points, points_interval, short
from offramp.core.evaluate import evaluate, evaluate_together
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords
from offramp.errors import InputError, MissingExtraError
from tables import Table, read

RECORDS, COSTS = dial_records(600), dial_costs()
HONEST, IN_SAMPLE = honest_frontier(RECORDS, COSTS), in_sample_frontier(RECORDS, COSTS)
HOSTILE = ("<script>alert(1)</script>", '"><img src=x>', "a\nb\x00\u202e")
GUARANTEE = Guarantee("drop of quality", 0.01, 500, 0.0, "exact trinomial test", 0.01)


def one_line(text):
    assert "\n" not in text
    assert "array(" not in text
    return text


def test_numbers():
    assert percent(0.4312) == "43.1%"
    assert percent(math.nan) == "\u2013"
    assert [points(0.005), points(-0.005), points(-1e-9), points(0.01, sign=True)] == [
        "0.50",
        "\u22120.50",
        "0.00",
        "+1.00",
    ]
    assert points_interval((-0.001, 0.002)) == "\u22120.10 to 0.20"
    assert points_interval(None) == "\u2013"
    assert short("layer.with.a.very.long.name", 10) == "\u2026long.name"


@pytest.mark.parametrize("always", [None, 0, 1, 57, 98, 99])
def test_an_even_selection(always):
    shown = evenly(100, 12, always)
    assert len(shown) == 12
    assert (shown[0], shown[-1]) == (0, 99)
    assert always is None or always in shown
    assert np.diff(shown).max() < 18
    assert evenly(12) == list(range(12))


def test_names_are_escaped_and_what_is_left_out_is_counted():
    table = Table(html_table("some <b>", HOSTILE[:2], [(HOSTILE[0], HOSTILE[2])], total=7))
    assert table.caption == "some <b>; 1 of 7 rows"
    assert table.heads == list(HOSTILE[:2])
    assert table.rows == [[HOSTILE[0], "a\ufffdb\ufffd\ufffd"]]
    assert table.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_lines_for_a_terminal():
    costs = one_line(repr(COSTS))
    assert costs == "CostTable(10 positions, 3 heads, full model 1.257e+08 macs)"
    batches = BatchCosts(np.array([1, 4, 8]), np.zeros((3, 11)), np.zeros((3, 10, 3)))
    assert repr(batches) == "BatchCosts(10 positions, 3 heads, 3 sizes of 1 to 8)"
    assert "batches of 1 to 8" in one_line(repr(replace(COSTS, by_batch=batches)))
    assert one_line(repr(RECORDS)) == (
        "ExitRecords(600 samples, 10 positions, 27 exits of linear, mlp, conv, quality by labels)"
    )
    outcome = evaluate(RECORDS, COSTS, HONEST[0])
    assert one_line(repr(outcome)).startswith(f"Outcome(quality {outcome.quality:.4f}, cost 4")
    assert "600 samples" in repr(outcome)
    joint = evaluate_together({"a": RECORDS}, {"a": COSTS}, {"a": HONEST[0]})
    assert re.fullmatch(
        r"JointOutcome\(tasks a, cost [\d.]+% of the full model's, .* 600 samples\)", repr(joint)
    )


def test_a_configuration_in_one_line():
    assert repr(ExitConfig()) == "ExitConfig(no exits)"
    config = ExitConfig([ExitChoice("a", "mlp", 0.91234), ExitChoice("b", "mlp", math.inf)])
    assert repr(config) == "ExitConfig(a mlp > 0.9123, b mlp > inf)"
    assert re.search(r"; cost [\d.]+%, quality 0\.\d{4} promised\)$", repr(HONEST[0]))
    assert re.search(r" in-sample\)$", repr(IN_SAMPLE[0]))
    certified = replace(HONEST[0], certificate=Certificate(0.05, 500, "labels", (GUARANTEE,)))
    assert repr(certified).endswith("promised; certified)")


def test_a_frontier_in_a_notebook():
    table = read(HONEST)
    assert table.caption.startswith(f"Frontier of {len(HONEST)} configurations, figures promised for new ")
    assert "from 600 search samples" in table.caption
    assert table.heads[2] == "quality, promised"
    assert len(table.rows) == min(12, len(HONEST))
    for row, config in zip(table.rows, HONEST, strict=False):
        assert row[3] == points(config.expected.drop)
        assert row[4] == points_interval(config.expected.drop_interval)
    table = read(IN_SAMPLE)
    assert "600 search samples themselves (in-sample: optimistic)" in table.caption
    assert table.heads[2] == "quality, in-sample"
    assert {row[4] for row in table.rows} == {"\u2013"}
    many = honest_frontier(dial_records(3000), COSTS, count=60)
    table = read(many)
    assert len(table.rows) == 12
    assert table.caption.endswith(f"; 12 of {len(many)} rows")
    assert (table.rows[0][0], table.rows[-1][0]) == ("0", str(len(many) - 1))


def test_records_in_a_notebook():
    table = read(RECORDS)
    assert table.heads == ["position", *RECORDS.heads]
    assert [row[0] for row in table.rows] == list(RECORDS.positions)
    assert table.rows[0][1:] == ["\u2013"] * 3  # no head at the input
    assert table.rows[4][2] == percent(float(RECORDS.quality[4, 1].mean()))
    assert "600 samples: mean quality (labels)" in table.caption
    nothing = RECORDS.subset(np.zeros(600, bool))
    assert {cell for row in read(nothing).rows for cell in row[1:]} == {"\u2013"}
    arrays = (RECORDS.confidence, RECORDS.quality, RECORDS.final_quality, RECORDS.exists)
    hostile = ExitRecords(*arrays, (RECORDS.positions[0], *HOSTILE, *RECORDS.positions[4:]), HOSTILE)
    shown = read(hostile)
    assert shown.heads[1] == HOSTILE[0]
    assert "kind unknown" in shown.caption
    assert "no head, quality by unknown" in repr(
        ExitRecords(*(each[:, :0] for each in arrays[:2]), arrays[2], arrays[3][:, :0], RECORDS.positions, ())
    )


def test_an_outcome_in_a_notebook():
    outcome = evaluate(RECORDS, COSTS, HONEST[0])
    table = read(outcome)
    figures = {row[0]: row[1] for row in table.rows}
    assert "600 samples" in table.caption
    assert figures["quality"] == percent(outcome.quality)
    assert figures["left at position 2"] == percent(outcome.exit_shares[2])
    assert figures["left at the output (10)"] == percent(outcome.exit_shares[-1])
    assert "left at position 1" not in figures
    nothing = replace(RECORDS, final_quality=0 * RECORDS.final_quality)
    assert ["quality / full model's", "\u2013"] in read(evaluate(nothing, COSTS, HONEST[0])).rows


def test_a_data_frame():
    pytest.importorskip("pandas")
    certified = replace(HONEST[0], certificate=Certificate(0.05, 500, "labels", (GUARANTEE,)))
    frame = HONEST.with_certificate(certified).to_frame()
    assert list(frame.columns) == [
        *("relative_cost", "cost", "quality", "drop", "drop_low", "drop_high", "in_sample_quality"),
        *("in_sample", "exits", "positions", "tradeoff", "certified"),
    ]
    assert frame.index.name == "index"
    assert len(frame) == len(HONEST)
    for at, config in enumerate(HONEST):
        row, own = frame.loc[at], config.expected
        assert (row["cost"], row["relative_cost"]) == (own.cost, own.relative_cost)
        assert (row["quality"], row["drop"]) == (own.quality, own.drop)
        assert (row["drop_low"], row["drop_high"]) == own.drop_interval
        assert row["in_sample_quality"] == pytest.approx(own.in_sample_quality)
        assert row["exits"] == len(config.choices)
    assert frame["positions"][0] == "layer1.1, layer2.0, layer2.2, layer3.1"
    assert frame["certified"].tolist() == [True] + [False] * (len(HONEST) - 1)
    assert math.isnan(frame["tradeoff"].iloc[-1])  # the full model was not searched for
    assert not frame["in_sample"].any()
    frame = IN_SAMPLE.to_frame()
    assert frame["in_sample"].all()
    assert frame["drop_low"].isna().all()
    assert np.allclose(frame["quality"], frame["in_sample_quality"])


def test_a_data_frame_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r'needs pandas.*pip install "offramp\[notebook\]"'):
        HONEST.to_frame()


def test_single_exits():
    cost, quality = single_exits(RECORDS, COSTS)
    assert np.isnan(cost[0]).all()
    choice = ExitChoice(RECORDS.positions[4], RECORDS.heads[1], -math.inf)
    outcome = evaluate(RECORDS, COSTS, ExitConfig([choice]))
    assert (cost[4, 1], quality[4, 1]) == pytest.approx((outcome.relative_cost, outcome.quality))
    with pytest.raises(InputError, match="measure and record the same network"):
        single_exits(RECORDS, CostTable([0, 1], [[0]], "macs"))


def test_a_frontier_of_both_kinds_of_figures_is_in_sample():
    mixed = Frontier([IN_SAMPLE[0], HONEST[-1]])
    assert "in-sample: optimistic" in read(mixed).caption
