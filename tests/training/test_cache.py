"""What heads are trained on: types on disk, masks, what is kept of exits that are not trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import offramp
import small
from offramp import TrainConfig, train_exits
from offramp.errors import InputError
from offramp.heads.features import FeatureSpec
from offramp.heads.registry import register_head
from offramp.training import cache
from offramp.training.cache import run_backbone

QUICK = TrainConfig(epochs=3, batch_size=20)


@register_head("small-masked")
class MaskedHead(nn.Module):
    """Mean over real tokens; what is cached holds the mask's part in it."""

    uses_mask = True

    def __init__(self, feature: FeatureSpec, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(feature.channels, outputs)

    def reduce(self, x, mask=None):
        mask = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
        return (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)

    def predict(self, z):
        return self.out(z)

    def forward(self, x, mask=None):
        return self.predict(self.reduce(x, mask))


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.bin"))


def test_sixteen_bits_take_half_the_disk_and_round(tmp_path):
    net, loader = small.network(heads=("linear", "conv")), small.loader()
    found = {dtype: run_backbone(net, loader, tmp_path / dtype, dtype=dtype) for dtype in cache.DTYPES}
    exact = found["float32"]
    rest = 96 * (8 + 3 * 4)  # labels and answers stay as they are
    for dtype, epsilon in (("float16", 2**-11), ("bfloat16", 2**-8)):
        assert size(tmp_path / dtype) - rest == (size(tmp_path / "float32") - rest) // 2
        assert torch.equal(found[dtype].answers, exact.answers)
        for key, values in exact.features.items():
            kept = found[dtype].features[key]
            assert kept.dtype == getattr(torch, dtype)
            assert torch.equal(kept, values.to(kept.dtype))
            torch.testing.assert_close(kept.float(), values, rtol=epsilon, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_heads_trained_on_sixteen_bits_are_nearly_the_same(tmp_path, dtype):
    found = []
    for kind in ("float32", dtype):
        net = small.network(heads=("linear", "mlp", "small-plain"))
        train_exits(
            net, small.loader(), config=dataclasses.replace(QUICK, cache_dtype=kind), work_dir=tmp_path
        )
        found.append(net.forward_all(small.inputs())[0])
    for exit_, out in found[0].items():
        torch.testing.assert_close(found[1][exit_], out, rtol=0.1, atol=0.05)
        assert not torch.equal(found[1][exit_], out)  # the other cache was used


def test_what_float16_does_not_hold_is_refused():
    net = small.network(small.Vector, heads=("linear",))
    loader = small.batches(small.inputs(small.Vector) * 1e6, small.labels())
    with pytest.raises(
        InputError, match=r"at 'a' reaches \d.*e\+06, more than float16 holds; pass cache_dtype="
    ):
        train_exits(net, loader, config=dataclasses.replace(QUICK, cache_dtype="float16"))
    train_exits(net, loader, config=dataclasses.replace(QUICK, cache_dtype="bfloat16"))


def test_heads_are_cached_with_the_mask():
    x = small.inputs(small.Tokens, 40)
    for name, masked in (("mask", True), (None, False)):
        net = offramp.attach_exits(
            small.model(small.Tokens), small.few(x), heads=("small-masked",), mask=name
        )
        head = net.head(1, "small-masked")
        train_exits(net, small.batches(x, small.labels(40)), config=QUICK)
        feature = net.backbone.layers[0](net.backbone.embed(x["ids"]) * x["mask"].float().unsqueeze(-1))
        wanted = head(feature, x["mask"] != 0) if masked else head(feature)
        (got,) = {p: out for (p, _), out in net.forward_all(x)[0].items() if p == 1}.values()
        torch.testing.assert_close(got, wanted.detach())


def test_given_modules_are_asked_only_where_their_answers_are_wanted(tmp_path):
    calls = []

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(6, 3)

        def forward(self, x):
            calls.append(len(x))
            return self.map(x)

    given = small.model(Given)
    net = small.network(small.Vector, heads=("linear",), input_exits={"own": given})
    calls.clear()
    plain = run_backbone(net, small.loader(small.Vector), tmp_path)
    assert (calls, plain.given) == ([], {})
    asked = run_backbone(net, small.loader(small.Vector), tmp_path, given=True)
    assert calls == [32, 32, 32]
    torch.testing.assert_close(
        asked.given[0, net.head_names.index("own")], given.map(small.inputs(small.Vector)).detach()
    )
    with torch.no_grad():
        given.map.bias.add_(1)
    again = run_backbone(net, small.loader(small.Vector), tmp_path, given=True)
    assert len(calls) == 6  # another module: other answers
    assert again.digest != asked.digest


def test_a_registered_kind_on_the_raw_input_is_trained():
    net = small.network(small.Vector, heads=("linear",), input_exits={"raw": "mlp"})
    x = small.inputs(small.Vector, 300)
    y = (x[:, 0] > 0).long()
    config = TrainConfig(epochs=20, batch_size=50, distillation=0)
    report = train_exits(net, small.batches(x, y), config=config)
    by_name = {(entry.position, entry.head): entry for entry in report.exits}
    assert by_name["input", "raw"].quality > 0.9
    assert by_name["input", "raw"].total_macs == by_name["input", "raw"].head_macs


def test_scales_are_the_means_and_deviations_of_rows():
    random = torch.Generator().manual_seed(0)
    features = torch.randn(500, 3, 4, generator=random) * torch.arange(1, 5) + 2
    features[:, 0, 0] = 1.0
    scale = cache.Scale(features, torch.device("cpu"))
    flat = features.flatten(1)
    torch.testing.assert_close(scale.mean, flat.mean(0))
    torch.testing.assert_close(scale.std[1:], flat.std(0, unbiased=False)[1:])
    floor = 0.05 * flat.double().std(0, unbiased=False).mean()
    assert scale.std[0].item() == pytest.approx(floor.item(), rel=1e-4)  # what does not move is not blown up
    assert scale(features).shape == features.shape
