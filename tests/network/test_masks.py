"""A mask of real tokens goes along to the heads that want it, through compaction too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import offramp
import small
from offramp import Engine, ExitChoice, ExitConfig
from offramp.errors import InputError
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import register_head


class Text(small.Tokens):
    """Its mask is called as tokenisers call it."""

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward(ids, attention_mask)


def inputs(lengths: list[int]) -> dict[str, Tensor]:
    ids = torch.randint(1, 20, (len(lengths), 5), generator=torch.Generator().manual_seed(0))
    return {"ids": ids, "attention_mask": (torch.arange(5) < torch.tensor(lengths)[:, None]).long()}


@pytest.fixture
def counting(registry: object) -> None:
    @register_head("counting")
    class Counting(nn.Module):
        """Says how many real tokens there are: (B, 3)."""

        uses_mask = True

        def __init__(self, feature: FeatureSpec, outputs: int) -> None:
            super().__init__()
            assert feature.mask
            assert not feature.per_token
            self.scale = nn.Parameter(torch.ones(outputs))

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            assert mask is not None
            assert mask.dtype == torch.bool
            return mask.sum(1, keepdim=True) * self.scale * torch.tensor([1.0, 0.0, 0.0], device=x.device)


@pytest.mark.usefixtures("counting")
def test_the_mask_arrives_everywhere() -> None:
    batch = inputs([5, 2, 3, 1, 4, 2])
    net = offramp.attach_exits(small.model(Text), inputs([5, 3]), heads=("counting",))
    assert net.mask_input == 1
    assert [spec and spec.mask for spec in net.specs] == [None, True, True]
    found, _ = net.forward_all(batch)
    assert found[1, 0][:, 0].tolist() == [5, 2, 3, 1, 4, 2]
    confidence_fn = net.confidence_of(1, 0)(found[1, 0])
    # the surest leave at the first exit; at the second the others must still have their own masks
    first, second = net.positions[1:]
    config = ExitConfig(
        [ExitChoice(first, "counting", float(confidence_fn[2])), ExitChoice(second, "counting", -1.0)]
    )
    out = Engine(net, config)(batch)
    assert out.position.tolist() == [1, 2, 2, 2, 1, 2]
    assert out.outputs[:, 0].tolist() == [5, 2, 3, 1, 4, 2]
    assert offramp.measure_cost(net).heads[1, 0] == 0


@pytest.mark.usefixtures("counting")
def test_a_mask_by_another_name_and_in_an_artifact(tmp_path: object) -> None:
    model, example = small.model(small.Tokens), small.inputs(small.Tokens)
    net = offramp.attach_exits(model, example, heads=("counting",), mask="mask")
    assert net.mask_input == 1
    assert offramp.attach_exits(model, example, heads=("linear",)).mask_input is None
    costs = offramp.measure_cost(net)
    records = offramp.record_outputs(net, [(example, torch.zeros(len(example["ids"]), dtype=torch.int64))])
    offramp.save(f"{tmp_path}/a", net, offramp.search(records, costs), costs)
    again, _, _ = offramp.load(f"{tmp_path}/a", model)
    assert again.mask_input == 1
    assert torch.equal(again.forward_all(example)[0][1, 0], net.forward_all(example)[0][1, 0])


def test_a_mask_that_is_none() -> None:
    model, example = small.model(small.Tokens), small.inputs(small.Tokens)
    with pytest.raises(InputError, match="mask: expected the name of an input, one of ids, mask; got 'pad'"):
        offramp.attach_exits(model, example, mask="pad")
    with pytest.raises(
        InputError, match=r"mask: expected input '0' to be of shape \(B, L\), got \(B, 1, 8, 8\)"
    ):
        offramp.attach_exits(small.model(small.Picture), small.inputs(small.Picture), mask="0")
