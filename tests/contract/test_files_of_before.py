"""What version 0.1.0 wrote before its modules were moved: read, answered and saved again just the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp
from before_move import (
    ARRAYS,
    FIELDS,
    FOLDER,
    Guess,
    Picture,
    TwoAnswers,
    answers,
    certified_frontier,
    costs_by_batch,
    same_answers,
    same_files,
)
from offramp import CostTable, Engine, ExitConfig, ExitRecords, Frontier, MultiEngine

CONFIGS, TASKS, SAMPLES = 5, ("what", "where"), 24


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.load(FOLDER / "inputs.npz")["x"]


@pytest.fixture(scope="module")
def expected() -> Mapping[str, np.ndarray]:
    return dict(np.load(FOLDER / "expected.npz"))


@pytest.fixture(scope="module")
def loaded() -> tuple[offramp.ExitNetwork, Frontier, CostTable]:
    """The artifact, over a model that gets its weights from there too."""
    return offramp.load(
        FOLDER / "artifact", Picture().eval(), restore_backbone=True, input_exits={"guess": Guess()}
    )


@pytest.fixture(scope="module")
def tasks() -> Any:
    """Networks, frontiers and costs of two tasks."""
    given = {"what": {"guess": Guess()}}
    return offramp.load_tasks(FOLDER / "tasks", TwoAnswers().eval(), restore_backbone=True, input_exits=given)


def configs(frontier: Frontier) -> list[ExitConfig]:
    """The full model, and everything in a frontier, in the order of the stored answers."""
    return [ExitConfig(), *frontier.by_tradeoff.values()]


def test_the_artifact_holds_what_it_did(loaded: Any) -> None:
    net, frontier, costs = loaded
    assert net.positions == ("input", "blocks.0", "blocks.1")
    assert net.head_names == ("linear", "mlp", "guess", "raw")
    assert len(frontier.by_tradeoff) == CONFIGS
    assert [bool(each.certificate) for each in frontier.by_tradeoff.values()] == [0, 0, 1, 0, 0]
    assert frontier.to_json() == (FOLDER / "artifact" / "frontier.json").read_text()
    assert costs.to_json() == (FOLDER / "artifact" / "costs.json").read_text()
    assert offramp.measure_cost(net).to_json() == costs.to_json()


def test_the_engine_answers_as_it_did(loaded: Any, inputs: Any, expected: Any) -> None:
    net, frontier, _ = loaded
    same_answers(answers(Engine(net), torch.from_numpy(inputs), configs(frontier), "engine"), expected)
    left = [np.unique(expected[f"engine/{i}/position"]).size for i in range(CONFIGS + 1)]
    assert left == [1, 2, 2, 3, 2, 4]  # samples leave here and there, or equal answers would say little


def test_one_sample_at_a_time_leaves_where_it_did(loaded: Any, inputs: Any, expected: Any) -> None:
    net, frontier, _ = loaded
    engine, last = Engine(net), configs(frontier)[-1]
    engine.use(last)
    outs = [engine(torch.from_numpy(inputs[i : i + 1])) for i in range(SAMPLES)]
    for field in ("outputs", "position"):
        got = torch.cat([getattr(out, field) for out in outs]).numpy()
        np.testing.assert_array_equal(got, expected[f"engine/{CONFIGS}/{field}"])


@pytest.mark.parametrize("table", ["macs", "seconds"])
def test_configurations_have_the_figures_they_had(loaded: Any, table: str) -> None:
    _, frontier, costs = loaded
    records = ExitRecords.load(FOLDER / "artifact" / "records-search.safetensors")
    costs = costs if table == "macs" else CostTable.from_json((FOLDER / "costs.json").read_text())
    wanted = json.loads((FOLDER / "figures.json").read_text())[table]
    for config, figures in zip(configs(frontier), wanted, strict=True):
        outcome = offramp.evaluate(records, costs, config)
        assert {name: getattr(outcome, name) for name in figures} == pytest.approx(figures, rel=1e-12)


def test_the_network_records_what_it_did(loaded: Any, inputs: Any) -> None:
    """Confidences of every exit, whether a configuration uses it or not."""
    net, _, _ = loaded
    stored = ExitRecords.load(FOLDER / "artifact" / "records-search.safetensors")
    records = offramp.record_outputs(net, [torch.from_numpy(inputs)], quality="agreement", progress=False)
    few = stored.subset(range(SAMPLES))
    np.testing.assert_allclose(records.confidence, few.confidence, rtol=1e-6)
    np.testing.assert_array_equal(records.exists, few.exists)
    assert (records.positions, records.heads) == (few.positions, few.heads)


def test_the_artifact_is_saved_again_byte_for_byte(loaded: Any, tmp_path: Path) -> None:
    records = ExitRecords.load(FOLDER / "artifact" / "records-search.safetensors")
    offramp.save(tmp_path / "again", *loaded, records={"search": records}, include_backbone=True)
    same_files(tmp_path / "again", FOLDER / "artifact")


def test_tasks_answer_as_they_did(tasks: Any, inputs: Any, expected: Any) -> None:
    nets, frontiers, _ = tasks
    assert tuple(nets) == TASKS
    assert [net.confidence for net in nets.values()] == ["max-probability", "margin"]
    engine = MultiEngine(nets)
    for i in range(2):
        engine.use({name: each.by_tradeoff[i / 10] for name, each in frontiers.items()})
        out = engine(torch.from_numpy(inputs))
        for name in TASKS:
            got = {f"tasks/{i}/{name}/{field}": getattr(out[name], field).numpy() for field in FIELDS}
            same_answers(got, expected)


def test_tasks_are_saved_again_byte_for_byte(tasks: Any, tmp_path: Path) -> None:
    records = ExitRecords.load(FOLDER / "tasks" / "what" / "records-search.safetensors")
    kept = {"what": {"search": records}}
    offramp.save_tasks(tmp_path / "again", *tasks, records=kept, include_backbone=True)
    same_files(tmp_path / "again", FOLDER / "tasks")


def test_a_frontier_with_a_certificate() -> None:
    text, wanted = (FOLDER / "frontier.json").read_text(), certified_frontier()
    frontier = Frontier.from_json(text)
    assert frontier == wanted
    assert frontier[1].certificate == wanted[1].certificate
    assert frontier.between == wanted.between
    assert frontier.at(max_cost=0.4) == wanted.between[0]
    assert frontier.to_json() == text


def test_a_configuration_by_itself() -> None:
    text = (FOLDER / "config.json").read_text()
    config = ExitConfig.from_json(text)
    assert config == certified_frontier()[1]
    assert config.to_json() == text


def test_costs_by_batch() -> None:
    text, wanted = (FOLDER / "costs.json").read_text(), costs_by_batch()
    costs = CostTable.from_json(text)
    for name in ("backbone", "heads"):
        np.testing.assert_array_equal(getattr(costs, name), getattr(wanted, name))
        np.testing.assert_array_equal(getattr(costs.by_batch, name), getattr(wanted.by_batch, name))
    np.testing.assert_array_equal(costs.by_batch.sizes, [1, 2, 4])
    assert (costs.unit, costs.meta) == (wanted.unit, wanted.meta)
    assert costs.to_json() == text


def test_records(expected: Any, tmp_path: Path) -> None:
    records = ExitRecords.load(FOLDER / "records.safetensors")
    for name in ARRAYS:
        got, wanted = getattr(records, name), expected[f"records/{name}"]
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    assert records.meta["quality"] == "labels"
    records.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (FOLDER / "records.safetensors").read_bytes()


@pytest.mark.parametrize(("kind", "name"), [("onnx", "OrtEngine"), ("onnx-single", "OrtSingle")])
def test_exports_answer_as_they_did(loaded: Any, inputs: Any, expected: Any, kind: str, name: str) -> None:
    pytest.importorskip("onnxruntime", reason="running exports needs the extra onnx")
    from offramp.export import ort

    _, frontier, costs = loaded
    engine = getattr(ort, name)(FOLDER / kind, threads=1, prepare=frontier)
    assert engine.frontier == frontier
    assert engine.costs.to_json() == costs.to_json()
    assert engine.export.signature.classes == ("a", "b", "c")
    same_answers(answers(engine, inputs, configs(frontier), kind), expected)


def test_an_exported_chain_answers_the_same_without_fused_graphs(
    loaded: Any, inputs: Any, expected: Any
) -> None:
    pytest.importorskip("onnxruntime", reason="running exports needs the extra onnx")
    from offramp.export.ort import OrtEngine

    engine = OrtEngine(FOLDER / "onnx", threads=1, fuse=False)
    same_answers(answers(engine, inputs, configs(loaded[1]), "onnx"), expected)
