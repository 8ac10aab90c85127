"""The runtime benchmark: its clock, its choices, and that its rivals answer as they should."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import offramp
import small
from offramp.core.certificate import Expected
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.frontier import Frontier

FOLDER = "runtime"
MODULES = ("timing", "cases", "rivals", "race", "prediction", "picture", "run")
COUNT = 96


@pytest.fixture(scope="module")
def net():
    return small.network(heads=("linear",), input_exits={"raw": "linear"})


@pytest.fixture(scope="module")
def part(bench, net):
    x, y = small.inputs(count=COUNT), small.labels(COUNT)
    return bench.cases.Part(x, y, offramp.record_outputs(net, small.batches(x, y)))


@pytest.fixture(scope="module")
def macs(net):
    return offramp.measure_cost(net)


def config_of(records, *positions, share=0.4):
    """An exit at each position, at the threshold that this share of the samples is above."""
    choices = []
    for name in positions:
        p = records.positions.index(name)
        c = int(np.flatnonzero(records.exists[p])[0])
        threshold = float(np.quantile(records.confidence[p, c], 1 - share))
        choices.append(ExitChoice(name, records.heads[c], threshold))
    return ExitConfig(tuple(choices))


@pytest.fixture(scope="module")
def config(part):
    return config_of(part.records, "input", "blocks.0", "blocks.1")


# ------------------------------------------------------------------------------------------------- timing


class Clock:
    """Time passes only where a call says so."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def taking(self, name, seconds):
        def call(value):
            self.order.append((name, value))
            self.now += seconds * value

        return call


def test_every_call_gets_every_input_and_its_own_seconds(bench):
    clock = Clock()
    calls = [clock.taking("a", 1.0), clock.taking("b", 10.0)]
    seconds = bench.timing.interleaved(calls, [1, 2, 3], rounds=2, clock=clock)
    assert seconds.tolist() == [[[1, 10], [2, 20], [3, 30]]] * 2


def test_two_calls_take_turns_in_being_first(bench):
    clock = Clock()
    bench.timing.interleaved([clock.taking("a", 1), clock.taking("b", 1)], [1, 2], rounds=8, clock=clock)
    timed = [name for name, _ in clock.order[2 * bench.timing.WARM :]]
    first, second = timed[::2], timed[1::2]
    assert first.count("a") == second.count("a") == 8
    assert all({one, other} == {"a", "b"} for one, other in zip(first, second, strict=True))


def test_no_call_always_follows_the_same(bench):
    clock = Clock()
    names = "abcd"
    bench.timing.interleaved([clock.taking(name, 1) for name in names], [1] * 40, clock=clock)
    timed = [name for name, _ in clock.order[4 * bench.timing.WARM :]]
    for name in names:
        before = {timed[i - 1] for i in range(1, len(timed)) if timed[i] == name}
        assert before >= set(names) - {name}


def test_a_budget_ends_the_rounds_but_never_the_first(bench):
    clock = Clock()
    call = clock.taking("a", 1.0)
    assert len(bench.timing.interleaved([call], [1, 1], rounds=9, budget=0, clock=clock)) == 1
    assert len(bench.timing.interleaved([call], [1, 1], rounds=9, budget=5, clock=clock)) == 3


def test_an_interrupted_call_does_not_count(bench):
    seconds = np.ones((5, 2, 1))
    seconds[3, 1, 0] = 100
    assert bench.timing.middle(seconds).tolist() == [[1], [1]]


def test_the_sum_is_what_a_mean_predicts_and_the_median_is_not(bench):
    times = np.array([[1.0, 10], [1, 10], [10, 10]])
    assert bench.timing.ratios(times) == {"sum": 0.4, "median": 0.1}


def test_summary(bench):
    told = bench.timing.summary(np.arange(101) / 1000, batch=4)
    assert told == {"p50": 50, "p95": 95, "p99": 99, "throughput": pytest.approx(4 * 101 / 5.05)}


# --------------------------------------------------------------------------------------------------- cases


def test_picked_samples_keep_their_labels_and_records(bench, part):
    few = part.picked(10)
    again = part.picked(COUNT)
    assert torch.equal(few.inputs, again.inputs[:10])
    assert not torch.equal(few.inputs, part.inputs[:10])
    for i in range(10):
        at = int((part.inputs == few.inputs[i]).flatten(1).all(1).nonzero())
        assert part.labels[at] == few.labels[i]
        assert np.array_equal(part.records.confidence[:, :, at], few.records.confidence[:, :, i])


def test_batches_are_full(bench, part):
    assert [len(batch) for batch in part.batches(40)] == [40, 40]


def test_rows_of_dicts(bench):
    part = bench.cases.Part(small.inputs(small.Tokens, 8), small.labels(8), None)
    assert {name: value.shape for name, value in part.rows(slice(3)).items()} == {
        "ids": (3, 5),
        "mask": (3, 5),
    }


@pytest.mark.parametrize("target", [0.45, 0.7, 0.95])
def test_samples_are_shared_out_until_the_cost_is_right(bench, net, part, macs, target):
    made = bench.cases.shared_out(part.records, macs, bench.cases.spread(net, macs), target)
    assert [choice.position for choice in made.choices] == ["blocks.0", "blocks.1"]
    outcome = offramp.evaluate(part.records, macs, made)
    assert outcome.relative_cost == pytest.approx(target, abs=0.02)
    first, second = outcome.exit_shares[1], outcome.exit_shares[2] / (1 - outcome.exit_shares[1])
    assert first == pytest.approx(second, abs=0.03)


def test_exits_are_spread_over_the_backbone_and_light(bench, macs):
    net = small.network(heads=("mlp", "linear"))
    costs = offramp.measure_cost(net)
    assert bench.cases.spread(net, costs) == [(1, 1), (2, 1)]
    assert bench.cases.spread(net, costs, 1) == [(1 + (costs.backbone[1] < costs.full / 3), 1)]


# -------------------------------------------------------------------------------------------------- rivals


def engine_says(net, config, x):
    return offramp.Engine(net, config)(x)


def test_naive_answers_as_the_engine(bench, net, part, config):
    out = engine_says(net, config, part.inputs)
    assert len(set(out.position.tolist())) == 4
    torch.testing.assert_close(bench.rivals.naive(net, config)(part.inputs), out.outputs)


def test_naive_without_exits_is_the_model(bench, net, part):
    with torch.no_grad():
        assert torch.equal(bench.rivals.naive(net, ExitConfig())(part.inputs), net.backbone(part.inputs))


def test_hooks_answer_as_the_engine_one_by_one(bench, net, part, config):
    call = bench.rivals.hooks(net, config, lambda output: output)
    for i in range(24):
        x = part.inputs[i : i + 1]
        torch.testing.assert_close(call(x), engine_says(net, config, x).outputs)


def test_hooks_let_a_batch_leave_where_all_of_it_is_confident(bench, net, part):
    records = part.records
    config = config_of(records, "blocks.0", "blocks.1")
    p, c = 1, int(np.flatnonzero(records.exists[1])[0])
    highest = torch.from_numpy(np.argsort(-records.confidence[p, c])[:5].copy())
    call = bench.rivals.hooks(net, config, lambda output: output)
    out = engine_says(net, config, part.inputs[highest])
    assert out.position.tolist() == [1] * 5
    torch.testing.assert_close(call(part.inputs[highest]), out.outputs)
    with_one_below = torch.cat([highest, torch.from_numpy(np.argsort(records.confidence[p, c])[:1].copy())])
    assert not torch.allclose(call(part.inputs[with_one_below])[:5], out.outputs)


def test_hooks_sit_in_a_copy(bench, net, config):
    bench.rivals.hooks(net, config, lambda output: output)
    modules = list(net.backbone.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_hooks_need_a_module_that_ends_there(bench, net, part, config, monkeypatch):
    monkeypatch.setattr(net, "positions", ("input", "blocks.0@2", "blocks.1"))
    choice = ExitConfig((ExitChoice("blocks.0@2", config.choices[1].head, 0.5),))
    with pytest.raises(ValueError, match=r"a module that ends at 'blocks.0@2'"):
        bench.rivals.hooks(net, choice, lambda output: output)


def test_earlyon_says_why_there_is_none(bench, net, part, config, monkeypatch):
    monkeypatch.setattr(bench.rivals.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in bench.rivals.earlyon(net, config)
    monkeypatch.setattr(bench.rivals.importlib.util, "find_spec", lambda name: object())
    assert bench.rivals.earlyon(net, config) == "earlyon has no exits at the input"


@pytest.mark.skipif(importlib.util.find_spec("earlyon") is None, reason="earlyon is not installed")
@pytest.mark.filterwarnings("ignore")
def test_earlyon_answers_as_the_engine_one_by_one(bench, net, part):
    config = config_of(part.records, "blocks.0", "blocks.1")
    call = bench.rivals.earlyon(net, config)
    for i in range(24):
        x = part.inputs[i : i + 1]
        torch.testing.assert_close(call(x), engine_says(net, config, x).outputs)


def test_pieces_answer_as_the_whole(bench, net, part):
    whole = bench.rivals.plain(net.backbone, lambda output: output)
    torch.testing.assert_close(bench.rivals._pieced(whole, 7)(part.inputs), whole(part.inputs))


def test_pieces_of_dicts(bench):
    model, x = small.model(small.Tokens), small.inputs(small.Tokens, 10)
    whole = bench.rivals.plain(model, lambda output: output["logits"])
    torch.testing.assert_close(bench.rivals._pieced(whole, 4)(x), whole(x))


@pytest.mark.parametrize(
    ("execution", "tolerance"), [("channels last", 1e-5), ("bfloat16", 0.1), ("int8", 0.1)]
)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_static_models_in_other_executions(bench, net, part, tmp_path, execution, tolerance):
    made = bench.rivals.static(
        net.backbone, lambda output: output, execution, part.inputs[:2], tmp_path / "a"
    )
    with torch.no_grad():
        wanted = net.backbone(part.inputs)
    found = made(part.inputs)
    assert found.dtype == torch.float32
    assert float((found - wanted).abs().max()) < tolerance * float(wanted.abs().max())


# ---------------------------------------------------------------------------------------------------- race


def frontier(*pairs, position="blocks.0"):
    """A frontier of (cost, quality) with one exit each; thresholds tell them apart."""
    configs = [
        ExitConfig((ExitChoice(position, "linear", cost),), expected=Expected(quality, cost, 0.95, 1.0, 100))
        for cost, quality in pairs
    ]
    return Frontier.of(configs)


STEPS = ((0.05, 0.8), (0.2, 0.9), (0.5, 0.94))


def test_chooses_the_cheapest_that_is_as_good_on_the_search_split(bench):
    assert bench.race.choose(frontier(*STEPS), 0.85).expected.cost == 0.2
    assert bench.race.choose(frontier(*STEPS), 0.99).expected.cost == 0.5


def test_configurations_know_whom_they_stand_against(bench):
    margin = bench.race.MARGIN
    rivals = {"small": 0.8, "middle": 0.9 - margin, "full model": 0.95}
    found = bench.race.configurations(frontier(*STEPS), rivals)
    assert {c.expected.cost: names for c, names in found.items()} == {
        0.2: ["small", "middle"], 0.5: ["full model"], 0.05: [],
    }  # fmt: skip


def test_inside_leaves_out_exits_at_the_input(bench, part):
    found = bench.race.inside(part.records)
    assert part.records.exists[0].any()
    assert not found.exists[0].any()
    assert np.array_equal(found.exists[1:], part.records.exists[1:])


def row(name, kind, accuracy, p50, throughput, *, execution="eager", chosen_for=(), config=None):
    return {"name": name, "kind": kind, "accuracy": accuracy, "p50": p50, "throughput": throughput,
            "execution": execution, "chosen_for": list(chosen_for), "config": config}  # fmt: skip


ROWS = [
    row("small", "static", 0.90, 2, 500),
    row("small, by 8", "static", 0.90, 2.5, 600),
    row("small, fast", "static", 0.90, 1, 900, execution="fast"),
    row("hooks", "others", 0.91, 3, 300, config="a"),
    row("ours a", "ours", 0.91, 1, 550, chosen_for=["small"], config="a"),
    row("ours b", "ours", 0.89, 0.5, 2000, config="b"),
    row("ours c", "ours", 0.90, 0.8, 700, config="c"),
]


def test_rivals_are_beaten_in_accuracy_latency_and_throughput_or_not(bench):
    found = {each["rival"]: each for each in bench.race.versus(ROWS)}
    assert found["small"] == {
        "rival": "small", "chosen": "ours a", "chosen beats it": True,
        "fastest as accurate": "ours c", "fastest beats it": True,
    }  # fmt: skip
    assert found["small, by 8"]["chosen"] == "ours a"
    assert not found["small, by 8"]["chosen beats it"]
    assert found["small, by 8"]["fastest beats it"]
    assert found["hooks"]["chosen"] == "ours a"
    assert found["hooks"]["chosen beats it"]


def test_a_rival_meets_only_what_is_computed_as_it_is(bench):
    found = {each["rival"]: each for each in bench.race.versus(ROWS)}
    assert found["small, fast"] == {
        "rival": "small, fast", "chosen": None, "chosen beats it": False,
        "fastest as accurate": None, "fastest beats it": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "p50", "throughput", "better"),
    [(0.9, 1.9, 501, True), (0.8999, 1.9, 501, False), (0.9, 2, 501, False), (0.9, 1.9, 500, False)],
)
def test_beats(bench, accuracy, p50, throughput, better):
    assert bench.race.beats(row("ours", "ours", accuracy, p50, throughput), ROWS[0]) is better


@pytest.fixture
def case(bench, net, part):
    return bench.cases.Case("fashion", net, part, part, {"small": small.model(seed=3)})


@pytest.fixture
def setting(bench, case, macs, tmp_path):
    found = offramp.search(case.search.records, macs, regularise=None)
    within = offramp.search(bench.race.inside(case.search.records), macs, regularise=None)
    models = {bench.race.FULL: case.model, **case.members}
    rivals = {
        name: bench.race.accuracy(bench.rivals.plain(model, lambda output: output), case.search)
        for name, model in models.items()
    }
    skipped = {}
    return bench.race.Setting(case, 4, macs, found, within, rivals, (), tmp_path, skipped.__setitem__)


def test_every_line_answers_and_is_as_accurate_as_foretold(bench, setting, part):
    found = [entry for entry, _ in bench.race.entries(setting)]
    names = [entry.name for entry in found]
    assert len(set(names)) == len(names)
    assert {entry.kind for entry in found} == {"static", "others", "ours"}
    for entry in found:
        told = bench.race.entry_accuracy(entry, setting)
        counted = bench.race.accuracy(entry.call, part, 1 if entry.any_batch else setting.batch)
        assert told == pytest.approx(counted, abs=1e-9 if entry.foretold or not entry.any_batch else 0.35)


def test_a_race_gives_every_line_its_figures(bench, setting, part):
    found = [entry for entry, _ in bench.race.entries(setting)]
    figures = bench.race.race(found, part.batches(4), 4, budget=0.0)
    assert len(figures) == len(found)
    assert all(each["calls"] == 5 and each["p50"] <= each["p99"] for each in figures)


# ------------------------------------------------------------------------------------- prediction, overhead


def test_prediction_tells_shares_of_the_plain_model(bench, case, macs, monkeypatch):
    monkeypatch.setattr(bench.prediction, "SAMPLES", {"fashion": (8, 32)})
    found = offramp.search(case.search.records, macs, regularise=None)
    costs = replace(macs, meta={"plain": macs.full})
    rows = bench.prediction.prediction(case, 4, costs, found, 0.0)
    assert len(rows) == 5
    for each in rows:
        assert each["macs"] == pytest.approx(each["predicted"])  # the table is of MACs here
        assert each["measured"] > 0
        assert ExitConfig.from_json(each["config"]).choices or each["exits"] == 0


def test_nobody_takes_the_exits_whose_overhead_is_measured(bench, case, part):
    config = bench.prediction.nobody_leaves(case)
    assert [choice.position for choice in config.choices] == ["blocks.0", "blocks.1"]
    assert set(engine_says(case.net, config, part.inputs).position.tolist()) == {3}


@pytest.mark.parametrize("heads", [False, True])
def test_a_chain_answers_as_the_model_and_runs_heads_or_not(bench, case, part, monkeypatch, heads):
    ran, exit_fn = [], type(case.net).exit_fn

    def counting(net, p, c):
        run_exit = exit_fn(net, p, c)
        return lambda *given: ran.append(p) or run_exit(*given)

    monkeypatch.setattr(type(case.net), "exit_fn", counting)
    call = bench.prediction.chain(case, bench.prediction.nobody_leaves(case), heads)
    with torch.no_grad():
        torch.testing.assert_close(call(part.inputs), case.model(part.inputs))
    assert ran == ([1, 2] if heads else [])


def test_overhead_is_told_for_batches_and_single_samples(bench, case, monkeypatch):
    monkeypatch.setattr(bench.prediction, "SAMPLES", {"fashion": (4, 16)})
    assert set(bench.prediction.overhead(case, 4, 0.0)) == {"plain_ms", "off"}
    assert set(bench.prediction.overhead(case, 1, 0.0)) == {"plain_ms", "off", "exits", "per_exit_us"}


# ---------------------------------------------------------------------------------------------- the command


@pytest.mark.filterwarnings("ignore:Glyph")
def test_runs_every_part_and_adds_to_its_results(bench, case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.run, "load_case", lambda name, arguments: case)
    monkeypatch.setattr(bench.prediction, "SAMPLES", {"fashion": (8, 32)})
    monkeypatch.setattr(bench.picture, "LOWEST", 0.0)
    monkeypatch.setattr(bench.picture, "SHOWN", ("batch 1, 1 thread", "batch 4, 1 thread"))
    out = tmp_path / "results" / "runtime.json"
    arguments = argparse.Namespace(
        part=["tables", "prediction", "race", "overhead"], case=["fashion"], batch=[1], threads=[1],
        executions=[], seconds=0.0, prepare_only=False, work=tmp_path / "work", out=out,
    )  # fmt: skip
    bench.run.Bench(arguments).run()
    arguments.part, arguments.batch = ["race", "picture"], [4]
    bench.run.Bench(arguments).run()
    kept = json.loads(out.read_text())
    assert set(kept) == {"machine", "prediction", "overhead", "race"}
    assert list(kept["race"]) == ["fashion, batch 1, 1 thread", "fashion, batch 4, 1 thread"]
    assert out.with_suffix(".png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "ours against each" in said
    assert "beyond its head" in said
    assert "time, predicted" in said
