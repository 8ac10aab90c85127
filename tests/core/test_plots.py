"""What is drawn, read back from the axes."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest

from dials import dial_costs, dial_records, honest_frontier, in_sample_frontier
from offramp.core import plots
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable, single_exits
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords
from offramp.errors import InputError, MissingExtraError

RECORDS, COSTS = dial_records(800), dial_costs()
HONEST, IN_SAMPLE = honest_frontier(RECORDS, COSTS), in_sample_frontier(RECORDS, COSTS)


@pytest.fixture
def axes():
    """Axes of a figure of their own; pyplot knows nothing of them."""
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def line(axes, label):
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return np.array(found.get_xydata())


def labels(axes):
    return [each.get_text() for each in axes.get_legend().get_texts()]


def test_promised_figures_with_band_and_the_in_sample_curve(axes):
    assert HONEST.plot(ax=axes) is axes
    own = [config.expected for config in HONEST]
    cost = [100 * each.relative_cost for each in own]
    promised = np.stack([cost, [100 * each.quality for each in own]], 1)
    assert line(axes, "promised for new samples") == pytest.approx(promised)
    searched = np.stack([cost, [100 * each.in_sample_quality for each in own]], 1)
    assert line(axes, "search samples (in-sample)") == pytest.approx(searched)
    (dashed,) = [each for each in axes.lines if each.get_label() == "search samples (in-sample)"]
    assert dashed.get_linestyle() == "--"
    assert line(axes, "full model") == pytest.approx(np.array([[100, 100 * own[0].full_quality]]))
    (band,) = [each for each in axes.collections if each.get_label() == "95% interval"]
    corners = {tuple(np.round(each, 6)) for each in band.get_paths()[0].vertices}
    for x, each in zip(cost, own, strict=True):
        assert {(round(x, 6), round(100 * end, 6)) for end in each.quality_interval} <= corners
    assert axes.get_xlabel() == "cost (% of the full model)"
    assert axes.get_ylabel() == "quality (%)"
    assert labels(axes) == [
        "search samples (in-sample)", "95% interval", "promised for new samples", "full model"
    ]  # fmt: skip


def test_in_sample_figures_have_no_band_and_are_called_so(axes):
    IN_SAMPLE.plot(ax=axes)
    assert labels(axes) == ["search samples (in-sample)", "full model"]
    assert len(axes.collections) == 0


def test_a_configuration_without_interval_leaves_a_gap(axes):
    some = replace(HONEST[3], expected=replace(HONEST[3].expected, drop_interval=None))
    Frontier([*HONEST[:3], some, *HONEST[4:]]).plot(ax=axes)
    (band,) = axes.collections
    at = 100 * some.expected.relative_cost
    assert not any(np.isclose(path.vertices[:, 0], at).any() for path in band.get_paths())


def test_the_chosen_one_is_ringed(axes):
    chosen = HONEST.at(max_drop=0.02)
    HONEST.plot(chosen=chosen, ax=axes)
    own = chosen.expected
    assert line(axes, "chosen") == pytest.approx(100 * np.array([[own.relative_cost, own.quality]]))


def test_single_exits_are_small_marks_within_the_window(axes):
    HONEST.plot(RECORDS, COSTS, ax=axes)
    cost, quality = single_exits(RECORDS, COSTS)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < 100 * HONEST[0].expected.relative_cost < 100 < right
    x, y = 100 * cost[1:, 1], 100 * quality[1:, 1]
    shown = (x >= left) & (y >= low)
    count = int(shown.sum())
    assert 0 < count < 9
    drawn = line(axes, f"mlp alone ({count} of 9 in view)")
    assert drawn == pytest.approx(np.stack([x[shown], y[shown]], 1))
    assert low > 100 * np.nanmin(quality)  # the worst ones do not squeeze the dial
    assert low < 100 * HONEST[0].expected.quality < 100 * HONEST[-1].expected.quality < high


def test_names_are_text_and_none_is_hidden(axes):
    heads = ("$x$", "_own", "a\nb")
    records = dial_records(300, heads=heads)
    HONEST.plot(records, COSTS, ax=axes)
    shown = [each.partition(" alone")[0] for each in labels(axes)]
    assert shown[-3:] == ["$x$", " _own", "a\ufffdb"]
    assert not any(each.get_parse_math() for each in axes.get_legend().get_texts())
    axes.figure.savefig(io.BytesIO())


def test_pyplot_is_left_alone_where_axes_are_given(axes, pyplot):
    HONEST.plot(ax=axes)
    RECORDS.plot(axes)
    assert pyplot.get_fignums() == []


def test_without_axes_a_new_figure_is_made_that_a_notebook_shows(pyplot):
    before = dict(pyplot.rcParams)
    first = pyplot.figure()
    axes = HONEST.plot()
    assert axes.figure is pyplot.gcf()  # the inline backend shows what pyplot knows
    assert axes.figure is not first
    assert RECORDS.plot().figure is pyplot.gcf()
    assert len(pyplot.get_fignums()) == 3
    assert first.axes == []
    assert dict(pyplot.rcParams) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"records": RECORDS}, "expected records and costs together, got one of them"),
        ({"costs": COSTS}, "expected records and costs together, got one of them"),
        ({"records": RECORDS, "costs": CostTable([0, 1], [[0]], "macs")}, "record the same network"),
        ({"records": RECORDS.subset([]), "costs": COSTS}, "at least one sample"),
        ({"chosen": 3}, "expected a configuration with figures.*got 3"),
        ({"chosen": ExitConfig()}, r"expected a configuration with figures.*got ExitConfig\(no exits\)"),
    ],
)
def test_what_a_frontier_cannot_draw(given, message, axes):
    with pytest.raises(InputError, match=message):
        HONEST.plot(**given, ax=axes)
    assert axes.lines[:] == []


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (HONEST.plot, RECORDS.plot):
        with pytest.raises(MissingExtraError, match=r'needs matplotlib.*pip install "offramp\[plot\]"'):
            draw()


def test_confidence_against_quality_in_equal_bins(axes):
    assert RECORDS.plot(axes, head="mlp", bins=5) is axes
    drawn = line(axes, "layer2.1")
    at = RECORDS.positions.index("layer2.1")
    order = np.argsort(RECORDS.confidence[at, 1], kind="stable").reshape(5, -1)
    wanted = [(RECORDS.confidence[at, 1][o].mean(), RECORDS.quality[at, 1][o].mean()) for o in order]
    assert drawn == pytest.approx(np.array(wanted), abs=2e-3)  # a sample at a border may fall on either side
    assert axes.get_title() == "exits of head mlp"
    assert labels(axes)[-1] == "full model"
    assert len(line(axes, "full model")) == 5


def test_ties_share_a_bin_and_what_is_not_finite_is_left_out(axes):
    confidence = np.full((2, 1, 6), np.nan)
    confidence[1, 0] = [0.2, 1.0, 1.0, 1.0, np.inf, np.nan]
    quality = np.zeros((2, 1, 6))
    quality[1, 0] = [0, 1, 0, 1, 0, 0]
    exists = np.array([[False], [True]])
    records = ExitRecords(confidence, quality, np.ones(6), exists, ("input", "a"), ("h",))
    records.plot(axes, bins=3)
    assert line(axes, "a") == pytest.approx(np.array([[0.2, 0], [1.0, 2 / 3]]))
    assert labels(axes) == ["a"]
    records.confidence[1, 0, :] = np.nan
    axes.clear()
    records.plot(axes)
    assert len(line(axes, "a")) == 0


@pytest.mark.parametrize(("shift", "there"), [(0.0, True), (-1.0, False)])
def test_the_diagonal_is_drawn_where_confidence_could_be_a_probability(axes, shift, there):
    records = replace(RECORDS, confidence=RECORDS.confidence + shift, final_confidence=None)
    records.plot(axes)
    drawn = any(np.array_equal(each.get_xydata(), [[0, 0], [1, 1]]) for each in axes.lines)
    assert drawn is there


def test_many_positions_stay_readable(axes):
    positions = ("input", *(f"blocks.{at}" for at in range(53)))
    dial_records(200, positions=positions).plot(axes, head="conv")
    assert len(axes.lines) == 53 + 2  # the full model and the diagonal
    named = labels(axes)
    assert len(named) == plots.MOST_NAMED + 1
    assert (named[0], named[-2]) == ("blocks.0", "blocks.52")
    assert axes.get_legend().get_title().get_text() == f"{plots.MOST_NAMED} of 53 positions named"
    widths = {each.get_linewidth() for each in axes.lines if each.get_label().startswith("_")}
    assert min(widths) < 1


def test_the_first_head_that_there_is(axes):
    exists = RECORDS.exists.copy()
    exists[:, 0] = False
    replace(RECORDS, exists=exists).plot(axes)
    assert axes.get_title() == "exits of head mlp"


@pytest.mark.parametrize(
    ("records", "given", "message"),
    [
        (RECORDS, {"bins": 0}, "expected a whole number of at least 1, got 0"),
        (RECORDS, {"bins": 2.5}, "expected a whole number of at least 1, got 2.5"),
        (RECORDS, {"head": "new"}, "got 'new'; known: linear, mlp, conv"),
        (RECORDS.subset([]), {}, "got none of any samples"),
        (replace(RECORDS, exists=RECORDS.exists & False), {}, "got none of any exits"),
    ],
)
def test_what_records_cannot_draw(records, given, message, axes):
    with pytest.raises(InputError, match=message):
        records.plot(axes, **given)


def test_a_ring_may_be_around_one_between(axes):
    config = replace(HONEST[2], choices=(ExitChoice("layer1.0", "mlp", 0.5),))
    HONEST.plot(chosen=config, ax=axes)
    assert len(line(axes, "chosen")) == 1


def test_more_kinds_of_heads_than_colours_stay_apart():
    assert len({plots.mark(head)[:2] for head in range(30)}) == 30


@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_colours_of_positions_are_distinct(count):
    assert len(set(plots.sequence(count))) == count
