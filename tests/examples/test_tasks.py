"""The examples of tasks, smaller: savings on the report split are real, records say what the engine does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
SMALLER: dict[str, dict[str, int]] = {
    "multi_label": {"train": 2400, "held_out": 600, "epochs": 6, "head_epochs": 6},
    "regression": {"times": 2, "epochs": 5, "head_epochs": 8},
    "token_classification": {"train": 800, "held_out": 500, "epochs": 5, "head_epochs": 8},
}
DROP = {"multi_label": 0.01, "regression": 0.02, "token_classification": 0.03}
BORDER = 1e-5  # a confidence so close to a threshold may fall on either side


@pytest.fixture(scope="module", params=sorted(SMALLER))
def example(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    name = request.param
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with torch.random.fork_rng():
        spec.loader.exec_module(module)
        yield name, module.run(**SMALLER[name])
    del sys.modules[spec.name]


def test_a_small_drop_saves_a_part_of_the_cost_on_samples_not_seen(example: tuple[str, Any]) -> None:
    name, result = example
    full = offramp.evaluate(result.records, result.costs, offramp.ExitConfig())
    saved = offramp.evaluate(result.records, result.costs, result.frontier.at(max_drop=DROP[name]))
    assert saved.relative_cost < 0.95
    assert saved.quality > full.quality - 2 * DROP[name] - 0.005
    assert full.quality > guessed(name, result) + 0.03


def guessed(name: str, result: Any) -> float:
    """Quality of the best answer that does not look: no digit, 0 degrees, or the commonest class."""
    labels = result.labels
    if name == "regression":
        blind = result.net.task.from_model(torch.zeros(len(labels), 1))
    elif name == "multi_label":
        blind = torch.full(labels.shape, -1.0)
    else:
        commonest = int(labels[labels >= 0].mode().values)
        blind = torch.nn.functional.one_hot(torch.full(labels.shape, commonest), 7).float()
    return float(result.net.task.quality(blind, labels).mean())


def test_the_engine_does_what_the_records_say(example: tuple[str, Any]) -> None:
    _, result = example
    engine = offramp.Engine(result.net)
    for config in (result.frontier[0], result.frontier[len(result.frontier) // 2], offramp.ExitConfig()):
        engine.use(config)
        engine.reset_stats()
        out = engine(result.inputs)
        outcome = offramp.evaluate(result.records, result.costs, config)
        border = np.zeros(result.records.samples, bool)
        for choice in config.choices:
            at = result.records.positions.index(choice.position)
            head = result.records.heads.index(choice.head)
            border |= np.abs(result.records.confidence[at, head] - choice.threshold) < BORDER
        different = (out.position.numpy() != outcome.position) & ~border
        assert int(different.sum()) == 0
        assert int(border.sum()) <= 2
        spent = engine.stats().macs / result.records.samples
        assert spent == pytest.approx(outcome.cost, rel=1e-9 if not border.any() else 1e-2)


def test_what_the_user_gets_is_worth_what_was_promised(example: tuple[str, Any]) -> None:
    _, result = example
    task, config = result.net.task, result.frontier.at(max_cost=0.7)
    out = offramp.Engine(result.net, config)(result.inputs)
    assert tuple(out.outputs.shape) == (len(result.labels), *result.net.answer_shape)
    quality = task.quality(task.from_model(out.outputs), result.labels)
    promised = offramp.evaluate(result.records, result.costs, config).quality
    assert float(quality.double().mean()) == pytest.approx(promised, abs=1e-4)


def test_one_by_one_is_like_a_batch(example: tuple[str, Any]) -> None:
    _, result = example
    engine = offramp.Engine(result.net, result.frontier.at(max_cost=0.7))

    def few(start: int, stop: int) -> Any:
        if isinstance(result.inputs, dict):
            return {name: value[start:stop] for name, value in result.inputs.items()}
        return result.inputs[start:stop]

    batch, each = engine(few(0, 20)), [engine(few(i, i + 1)) for i in range(20)]
    assert torch.equal(batch.position, torch.cat([out.position for out in each]))
    torch.testing.assert_close(batch.outputs, torch.cat([out.outputs for out in each]), rtol=1e-4, atol=1e-4)


def test_sure_answers_are_better(example: tuple[str, Any]) -> None:
    """Of the exits in use: the surer half of the samples has the higher quality."""
    _, result = example
    records = result.records
    used = {(choice.position, choice.head) for config in result.frontier for choice in config.choices}
    assert used
    for position, head in used:
        p, c = records.positions.index(position), records.heads.index(head)
        order = np.argsort(records.confidence[p, c])
        unsure, sure = np.array_split(records.quality[p, c][order], 2)
        assert sure.mean() > unsure.mean()
