"""Models that people use, each taken through the whole house: cut, run, trained, saved and loaded.

Those that take long are behind the marker ``long``; the rest runs every time.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.core.certificate import Expected
from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable
from offramp.core.frontier import Frontier
from offramp.graph.dynamic_quant import packed_layers
from offramp.graph.macs import count_macs, count_module
from offramp.network.network import ExitNetwork
from offramp.tasks.base import select_output
from toys import answer, clone, identical
from zoo import TOKENS, ZOO, Model

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
MODELS = [pytest.param(name, marks=pytest.mark.long if ZOO[name].long else ()) for name in ZOO]
PUBLISHED = [name for name in ZOO if ZOO[name].gmacs]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_through_the_whole_house(name: str, tmp_path: Path) -> None:
    listed = ZOO[name]
    model, draw = listed.build()
    net = offramp.attach_exits(model, draw(2), heads=("linear",))
    before = clone(weights(model))
    costs = offramp.measure_cost(net)
    frontier = no_exits(net, costs)

    check_segments(net, listed)
    if isinstance(draw(1), Tensor) and not net.partition.flow.trace.packed:
        assert costs.full == count_macs(lambda: count_module(model, draw(1).to("meta")))[0]
    engine = offramp.Engine(net, frontier[0])
    for batch in (1, 7):
        wanted = select_output(answer(model, draw(batch, seed=batch)), net.output)
        assert identical(engine(draw(batch, seed=batch)).outputs, wanted)
    check_training(net, [(draw(4, seed=1), torch.tensor([0, 1, 2, 0]))])
    check_artifact(tmp_path / "artifact", net, frontier, costs)
    assert identical(weights(model), before)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cost_is_the_published_one(name: str) -> None:
    listed = ZOO[name]
    with torch.device("meta"):  # shapes without values
        model = listed.make(listed.full).eval()
        words = listed.full == TOKENS
        sample = torch.ones(1, TOKENS).long() if words else torch.empty(1, 3, listed.full, listed.full)
    macs, _ = count_macs(lambda: count_module(model, sample))
    assert macs / 1e9 == pytest.approx(listed.gmacs, rel=0.01)


def test_the_documentation_shows_what_was_measured() -> None:
    found = json.loads((ROOT / "bench" / "results" / "models.json").read_text())
    assert [each["name"] for each in found] == list(ZOO)
    page = (ROOT / "docs" / "models.md").read_text().splitlines()
    for each in found:
        assert len(each["positions"]) >= each["blocks"] - 1
        name, _, variant = each["name"].partition(",")
        cells = next(line for line in page if line.startswith(f"| `{name}`{variant and ',' + variant} |"))
        assert f"| {each['blocks']} | {len(each['positions'])} |" in cells
        assert f"| {each['gmacs']:.4g} G |" in cells
        if each["published"]:
            assert each["gmacs"] == pytest.approx(ZOO[each["name"]].gmacs, rel=0.01)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, and the packed weights of quantised layers."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    packed = {f"{i}.packed": layer.weight().int_repr() for i, layer in enumerate(packed_layers(model))}
    return {name: value.detach() for name, value in {**state, **packed}.items()}


def no_exits(net: ExitNetwork, costs: CostTable) -> Frontier:
    config = ExitConfig((), 1.0, Expected(1.0, costs.full, 1.0, 1.0, 4))
    return Frontier([config], {1.0: config}, {"method": "by hand"})


def check_segments(net: ExitNetwork, listed: Model) -> None:
    model, draw = net.backbone, listed.build()[1]
    for batch in (1, 7):
        wanted = select_output(answer(model, draw(batch, seed=batch)), net.output)
        assert identical(net.partition.run(draw(batch, seed=batch)), wanted)
    assert listed.count_blocks(model) == listed.blocks
    assert len(net.partition.cuts) >= listed.blocks - 1
    inputs = draw(3)
    masked = isinstance(inputs, dict) and "attention_mask" in inputs
    assert all(bool(cut.carried_per_sample) == masked for cut in net.partition.cuts)


def check_training(net: ExitNetwork, batches: list[object]) -> None:
    before = clone([head.state_dict() for _, _, head in net.exits()])
    offramp.train_exits(net, batches, config=offramp.TrainConfig(epochs=1, batch_size=4))
    after = [head.state_dict() for _, _, head in net.exits()]
    for old, new in zip(before, after, strict=True):
        assert any(not torch.equal(old[key], new[key]) for key in old)


def check_artifact(path: Path, net: ExitNetwork, frontier: Frontier, costs: CostTable) -> None:
    offramp.save(path, net, frontier, costs)
    loaded, again, table = offramp.load(path, net.backbone)
    assert identical(dict(loaded.state_dict()), dict(net.state_dict()))
    assert loaded.positions == net.positions
    assert again == frontier
    assert table.to_json() == costs.to_json()
