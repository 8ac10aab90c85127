"""End to end on real data: the demo as a user runs it, and what it promises."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

import offramp
from offramp.artifacts.manifest import load_records, read_manifest
from offramp.cli.demo import digit_splits, run_demo
from offramp.cli.digits import DigitsResNet, load_digits
from offramp.core.evaluate import full_quality
from offramp.errors import MissingExtraError
from offramp.measure.throughput import read_batches, run_configs, time_model
from offramp.report.tables import frontier_rows, non_dominated, shares, thinned, with_exits

BORDER = (
    1e-5  # confidences this close to a threshold may fall on either side: batch size moves their last bits
)
TRADEOFFS = tuple(np.linspace(0.5, 1.0, 51).round(6).tolist())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(figures, printed text, folder) of one demo run."""
    out, text = tmp_path_factory.mktemp("demo"), io.StringIO()
    figures = run_demo(out, Console(file=text, width=120), progress=False)
    return figures, text.getvalue(), out


@pytest.fixture(scope="module")
def loaded(demo):
    """(network, frontier, costs, report records) from the artifact the demo saved."""
    folder = demo[2] / "artifact"
    net, frontier, costs = offramp.load(folder, DigitsResNet(), restore_backbone=True)
    return net, frontier, costs, load_records(folder, read_manifest(folder), "report")


def test_table_is_a_dial(demo):
    rows = thinned(with_exits(demo[0]["rows"]), 16)
    assert sum(non_dominated(rows)) >= 8
    assert any(row["relative_cost"] <= 0.5 and row["drop"] <= 0.005 for row in rows)


def test_it_says_what_happened_and_what_to_do_next(demo):
    _, text, out = demo
    for expected in ("configurations found", "full model", "offramp build --help", "MACs"):
        assert expected in text
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "artifact" / "manifest.json").is_file()


def compare(net, frontier, costs, records, stream):
    """Engine against ``evaluate``: every report sample, every configuration: position, predicted class, MACs.

    Samples within ``BORDER`` of a threshold are set aside and counted; MACs are compared over the positions
    that the engine itself reports.
    """
    engine = offramp.Engine(net, prepare=frontier)
    classes = classes_of(net, stream)
    totals = dict.fromkeys(("configurations", "decisions", "set_aside", "different", "macs_differ"), 0)
    for config in frontier:
        engine.use(config)
        engine.reset_stats()
        outs = [engine(inputs) for inputs, _ in stream]
        position = np.concatenate([out.position.cpu().numpy() for out in outs])
        predicted = np.concatenate([out.outputs.argmax(1).cpu().numpy() for out in outs])
        outcome, border = offramp.evaluate(records, costs, config), np.zeros(records.samples, bool)
        wanted, price = classes[-1, 0].copy(), costs.backbone.copy()
        for choice in config.choices:
            p, c = records.positions.index(choice.position), records.heads.index(choice.head)
            border |= np.abs(records.confidence[p, c] - choice.threshold) < BORDER
            wanted = np.where(outcome.position == p, classes[p, c], wanted)
            price[p:] += costs.heads[p, c]
        wrong = (position != outcome.position) | (predicted != wanted)
        totals["configurations"] += 1
        totals["decisions"] += records.samples
        totals["set_aside"] += int(border.sum())
        totals["different"] += int((wrong & ~border).sum())
        totals["macs_differ"] += engine.stats().macs != round(price[position].sum())
    return totals


def classes_of(net, stream):
    """Predicted class of every exit on every sample, (P + 1, C, N); the model's own in the last row."""
    positions, heads = len(net.positions), len(net.head_names)
    parts = []
    for inputs, _ in stream:
        answers, final = net.forward_all(inputs)
        part = np.full((positions + 1, heads, len(final)), -1)
        part[positions] = final.argmax(1).cpu().numpy()
        for (p, c), out in answers.items():
            part[p, c] = out.argmax(1).cpu().numpy()
        parts.append(part)
    return np.concatenate(parts, axis=2)


def test_engine_and_simulation_agree_on_every_report_sample(loaded):
    net, frontier, _, records = loaded
    stream = read_batches(net.partition.spec, digit_splits(load_digits(), 0).report)
    agreement = compare(*loaded, stream)
    assert agreement["configurations"] == len(frontier)
    assert agreement["decisions"] == len(frontier) * records.samples
    assert agreement["different"] == agreement["macs_differ"] == 0
    assert agreement["set_aside"] < 0.01 * agreement["decisions"]


def test_engine_from_the_artifact_gives_the_recorded_answers(loaded):
    """Position, prediction (through quality) and MACs, at other batch sizes than recorded."""
    net, frontier, costs, records = loaded
    images, labels = (torch.cat(part) for part in zip(*digit_splits(load_digits(), 0).report, strict=True))
    engine = offramp.Engine(net, prepare=frontier)
    for config in (frontier[0], frontier[len(frontier) // 2], frontier[-1], offramp.ExitConfig()):
        engine.use(config)
        engine.reset_stats()
        outs = [engine(part) for part in images.split(50)]
        position = torch.cat([out.position for out in outs]).numpy()
        right = torch.cat([out.outputs for out in outs]).argmax(1) == labels
        outcome, clear = offramp.evaluate(records, costs, config), np.ones(records.samples, bool)
        for choice in config.choices:
            p, c = records.positions.index(choice.position), records.heads.index(choice.head)
            clear &= np.abs(records.confidence[p, c] - choice.threshold) >= BORDER
        np.testing.assert_array_equal(position[clear], outcome.position[clear])
        if clear.all():
            assert float(right.float().mean()) == pytest.approx(outcome.quality, abs=1e-6)
            assert engine.stats().macs == round(outcome.cost * records.samples)


def test_exact_is_nowhere_worse_on_the_search_records(demo, loaded):
    folder, (_, _, costs, _) = demo[2] / "artifact", loaded
    records = load_records(folder, read_manifest(folder), "search")
    full = full_quality(records)

    def reached(method, **options):
        frontier = offramp.search(records, costs, method=method, tradeoffs=TRADEOFFS, **options)
        outcomes = [offramp.evaluate(records, costs, frontier.by_tradeoff[t]) for t in TRADEOFFS]
        return np.array([t * (1 - o.quality / full) + (1 - t) * o.relative_cost
                         for t, o in zip(TRADEOFFS, outcomes, strict=True)])  # fmt: skip

    exact = reached("exact", regularise=None)
    for method in ("single-pass", "iterative", "same-threshold"):
        assert (exact <= reached(method) + 1e-12).all(), method


def test_live_figures_follow_the_configuration(demo):
    full, good, cheap = demo[0]["live"]
    assert full["relative_macs"] == 1
    assert cheap["relative_macs"] < good["relative_macs"] < 0.6
    assert cheap["quality"] <= good["quality"] + 0.01


def test_streams_without_labels(loaded):
    net, frontier, *_ = loaded
    stream = read_batches(net.partition.spec, [torch.rand(5, 1, 14, 14), torch.rand(3, 1, 14, 14)])
    engine = offramp.Engine(net)
    (result,) = run_configs(engine, stream, [frontier[0]], rounds=1)
    assert result.quality is None
    assert sum(result.exit_shares) == pytest.approx(1)
    assert time_model(engine, stream, rounds=1) > 0


def test_json_rows_are_plain_data(loaded):
    _, frontier, costs, records = loaded
    rows = frontier_rows(frontier, records, costs)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_thinning_keeps_the_ends_and_spreads_the_rest():
    rows = [{"expected": {"cost": c, "quality": q}} for c, q in
            [(0, 0), (1, 1), (2, 50), (3, 99), (4, 99.1), (50, 99.5), (100, 100)]]  # fmt: skip
    assert thinned(rows, 7) == rows
    few = thinned(rows, 4)
    assert [row["expected"]["cost"] for row in few] == [0, 2, 50, 100]


def test_what_another_row_beats_is_dominated():
    rows = [{"relative_cost": c, "quality": q} for c, q in [(0.1, 0.8), (0.2, 0.9), (0.3, 0.9), (0.4, 0.95)]]
    assert non_dominated(rows) == [True, True, False, True]
    assert non_dominated([{"relative_cost": 0.5, "quality": 0.9}, *rows]) == [False, True, True, False, True]


def test_shares_name_the_largest_in_order_of_depth():
    values = [0.0, 0.5, 0.1, 0.002, 0.398]
    assert shares(values, ("input", "a", "b", "c"), most=2) == "a 50%, output 40%"
    assert shares(values, ("input", "a", "b", "c")) == "a 50%, b 10%, output 40%"


def test_missing_plot_extra_is_found_out_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="offramp\\[plot\\]"):
        run_demo(tmp_path, Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())
