"""The example of two tasks over one backbone, small and in full."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

PATH = Path(__file__).parents[2] / "examples" / "two_tasks.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("two_tasks", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "two_tasks", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_small_run(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        result = example.run(epochs=1, head_epochs=2, views=1)
    assert list(result.networks) == ["tens", "ones"]
    simulated = result.joint[0.005]
    assert result.executed["different"] == 0
    assert result.executed["macs"] == pytest.approx(simulated.relative_cost, rel=1e-3)
    for each in result.joint.values():
        assert max(one.cost for one in each.tasks.values()) <= each.cost < each.separate_cost
    printed = capsys.readouterr().out
    assert f"{simulated.share:.1%}" in printed
    assert f"{result.joint[0.02].tasks['ones'].quality:.1%}" in printed


@pytest.mark.long
def test_asking_both_costs_less_than_seven_tenths_of_asking_each(example: ModuleType) -> None:
    with torch.random.fork_rng():
        result = example.run()
    for name, net in result.networks.items():
        assert result.joint[0.0].tasks[name].relative_quality > 0.98
        assert len(net.positions) > 5
    # the same configurations in one call and in two: each task's answers are the same, so is its quality
    assert result.joint[0.005].share < 0.7
    assert result.executed["macs"] / result.executed["separate_macs"] < 0.7
    assert result.executed["different"] <= 2  # a confidence at a threshold: batch size moves its last bits
