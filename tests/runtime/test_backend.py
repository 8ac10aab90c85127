"""Spans on other backends than the eager one: close to the model, made beforehand, refused where not."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small
import toys
import zoo
from offramp import attach_exits, partition
from offramp.errors import InputError
from offramp.graph.spans import Span
from offramp.network.network import ExitNetwork
from offramp.runtime.backend import SpanProvider, difference
from offramp.runtime.execution import Execution
from offramp.runtime.int8 import Int8Linear
from offramp.runtime.rewrite import (
    Conversion,
    EditableGraph,
    Parameters,
    cast_features,
    editable_graph,
    quantise,
)

CHANNELS_LAST, BFLOAT16, INT8 = (
    Execution(channels_last=True),
    Execution(dtype="bfloat16"),
    Execution(int8=True),
)
EAGER = (
    CHANNELS_LAST,
    BFLOAT16,
    INT8,
    Execution(None, "bfloat16", True),
    Execution(channels_last=True, int8=True),
)
IMAGES = ("residual", "in-place", "wrapped", "float64", "bfloat16")
OTHERS = ("shared", "dict", "masked", "two inputs", "constants", "filled", "encoder")
PAIRS = [
    (name, how)
    for name in (*IMAGES, *OTHERS)
    for how in EAGER
    if (name in IMAGES or not how.channels_last) and (name not in ("float64", "bfloat16") or not how.int8)
]


@cache
def attached(name: str) -> tuple[ExitNetwork, Callable[..., Any]]:
    """A toy with exits; no test changes it."""
    model, draw = toys.TOYS[name]()
    return attach_exits(model, draw(2), heads=("linear",)), draw


def chain(provider: SpanProvider, values: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """The results of every segment, and last the answer."""
    spans = [provider.span(i, i + 1) for i in range(len(provider.net.positions))]
    activations, found = tuple(value.clone() for value in values), []
    with torch.inference_mode():
        for span in spans:
            activations = span(*activations)
            found.append(
                tuple(value.clone() if isinstance(value, Tensor) else value for value in activations)
            )
        return [*found[:-1], (provider.exit_fn(len(provider.net.positions))(activations, None),)]


def flat(net: ExitNetwork, draw: Callable[..., Any], batch: int) -> list[Tensor]:
    return net.partition.spec.flatten(draw(batch, seed=3))


def far(net: ExitNetwork, execution: Execution, values: list[Tensor]) -> float:
    pairs = zip(chain(SpanProvider(net, execution), values), chain(SpanProvider(net), values), strict=True)
    return max(difference(a, b) for found, wanted in pairs for a, b in zip(found, wanted, strict=True))


def test_the_eager_backend_is_the_partition_itself() -> None:
    net = small.network()
    provider, last = SpanProvider(net), len(net.positions)
    assert provider.execution == Execution()
    assert all(type(provider.span(i, i + 1)) is Span for i in range(last))
    values = [small.inputs(count=5)]
    with torch.inference_mode():
        results = provider.span(0, last)(*values)
        assert torch.equal(net.exit_fn(last)(results, None), net(values[0]))
    assert torch.equal(chain(provider, values)[-1][0], net(values[0]))


@pytest.mark.parametrize(("name", "execution"), PAIRS, ids=[f"{name}-{how.name}" for name, how in PAIRS])
def test_chains_are_close_to_the_model(name: str, execution: Execution) -> None:
    net, draw = attached(name)
    for batch in (7, 1):
        assert far(net, execution, flat(net, draw, batch)) <= execution.tolerance


@pytest.mark.parametrize("execution", EAGER, ids=lambda how: how.name)
def test_the_model_is_left_as_it_was(execution: Execution) -> None:
    model, draw = toys.TOYS["residual"]()
    net = attach_exits(model, draw(2), heads=("linear",))
    before = toys.state(model)
    far(net, execution, flat(net, draw, 3))
    after = toys.state(model)
    assert before.pop("values").keys() == after["values"].keys()
    assert before == {key: value for key, value in after.items() if key != "values"}


def test_features_and_answers_have_the_types_they_should() -> None:
    net, draw = attached("masked")
    *features, (answer,) = chain(SpanProvider(net, BFLOAT16), flat(net, draw, 4))
    assert [activations[0].dtype for activations in features] == [torch.bfloat16] * len(features)
    masks = [value.dtype for activations in features for value in activations[1:]]
    eager = [
        value.dtype
        for activations in chain(SpanProvider(net), flat(net, draw, 4))[:-1]
        for value in activations[1:]
    ]
    assert masks == eager
    assert torch.bfloat16 not in masks
    assert answer.dtype == torch.float32


def test_images_leave_a_span_channels_last() -> None:
    net, draw = attached("residual")
    for (feature, *_), cut in zip(
        chain(SpanProvider(net, CHANNELS_LAST), flat(net, draw, 4)), net.partition.cuts, strict=False
    ):
        assert cut.layout == "NCHW"
        assert feature.is_contiguous(memory_format=torch.channels_last)
        assert not feature.is_contiguous()


def test_a_feature_that_lost_its_layout_is_taken_too() -> None:
    net, draw = attached("residual")
    span, eager = SpanProvider(net, CHANNELS_LAST).span(1, 2), net.partition.span(1, 2)
    with torch.inference_mode():
        feature = net.partition.span(0, 1)(*flat(net, draw, 4))[0]
        assert feature.is_contiguous()
        assert difference(span(feature.clone())[0], eager(feature.clone())[0]) < 1e-5


@pytest.mark.parametrize("kind", ["linear", "mlp", "conv", "small-plain", "small-own"])
def test_exits_run_in_their_own_type(kind: str) -> None:
    net = small.network(heads=(kind,)).eval()
    provider, (p, c, _) = SpanProvider(net, BFLOAT16), next(e for e in net.exits() if e[0] > 0)
    values = [small.inputs(count=6)]
    converted, activations = chain(provider, values)[p - 1], chain(SpanProvider(net), values)[p - 1]
    with torch.inference_mode():
        found, wanted = provider.exit_fn(p, c)(converted, None), net.exit_fn(p, c)(activations, None)
    assert (found.dtype, found.shape) == (torch.float32, wanted.shape)
    assert difference(found, wanted) < 0.05


def test_exits_that_want_the_mask_get_it() -> None:
    model, draw = toys.TOYS["masked"]()
    net = attach_exits(model, draw(2), heads=("tokens",), mask="mask").eval()
    values = flat(net, draw, 5)
    mask = net.mask(values)
    p, c, _ = next(net.exits())
    provider = SpanProvider(net, BFLOAT16)
    with torch.inference_mode():
        found = provider.exit_fn(p, c)(chain(provider, values)[p - 1], mask)
        wanted = net.exit_fn(p, c)(chain(SpanProvider(net), values)[p - 1], mask)
    assert difference(found, wanted) < 0.05


def test_spans_and_copies_are_made_once() -> None:
    net, _ = attached("residual")
    provider = SpanProvider(net, CHANNELS_LAST)
    made: list[object] = []
    threads = [threading.Thread(target=lambda: made.append(provider.span(0, 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(map(id, made))) == 1
    parameters, slot = Parameters(), ({"w": torch.ones(2, 2, 1, 1)}, "w")
    assert parameters.copy(slot, Conversion()) is parameters.copy(slot, Conversion())
    assert parameters.copy(slot, Conversion()) is not parameters.copy(slot, Conversion(torch.bfloat16))


def test_later_weights_are_seen_by_the_eager_backend_alone() -> None:
    net = small.network(small.Vector)
    values = [small.inputs(small.Vector, 4)]
    eager, int8 = SpanProvider(net), SpanProvider(net, INT8)
    before = [chain(provider, values)[-1][0] for provider in (eager, int8)]
    with torch.no_grad():
        net.backbone.a.weight.mul_(2)
    after = [chain(provider, values)[-1][0] for provider in (eager, int8)]
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


class Model(nn.Module):
    """Two blocks, with something in between that is hard on coarse numbers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.top, self.between = nn.Linear(8, 3), between

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.between(block(x))
        return self.top(x)


def hard(between: Callable[[Tensor], Tensor]) -> ExitNetwork:
    return attach_exits(toys.seeded(lambda: Model(between)), toys.randn(8)(2), heads=("linear",))


def test_a_backend_that_is_too_coarse_is_refused() -> None:
    net = hard(lambda x: (x + 1000) - 1000)
    with pytest.raises(InputError) as error:
        SpanProvider(net, BFLOAT16).span(0, len(net.positions))
    said = str(error.value)
    assert said.startswith(
        "cannot run the span from 'input' to 'output' in bfloat16: expected outputs within 0.05 of the eager "
        "ones, relative to the largest; got"
    )
    assert said.endswith("this model needs more than bfloat16; try dtype=None")


def test_a_backend_that_cannot_be_computed_is_refused() -> None:
    net = hard(lambda x: x * torch.linalg.inv(x[:, :, None] * x[:, None] + torch.eye(8)).sum(1))
    with pytest.raises(
        InputError, match=r"in bfloat16: expected operations that support it, got .*try dtype=None"
    ):
        SpanProvider(net, BFLOAT16).span(0, len(net.positions))


def test_the_lowest_number_of_a_mask_does_not_become_infinite() -> None:
    lowest = torch.finfo(torch.float32).min

    def masked(x: Tensor) -> Tensor:
        return x + x.masked_fill(x < 5, lowest).softmax(1)  # every score is masked: equal shares

    net = hard(masked)
    (answer,) = chain(SpanProvider(net, BFLOAT16), flat(net, toys.randn(8), 3))[-1]
    assert bool(answer.isfinite().all())


@pytest.mark.parametrize(
    ("make", "execution", "message"),
    [
        (lambda: attached("shared")[0], CHANNELS_LAST,
         "Execution(channels_last=True): expected convolutions on images, found none"),
        (lambda: attached("float64")[0], INT8,
         "Execution(int8=True): expected layers in float32 on the CPU, got torch.float64 on cpu"),
    ],
    ids=["no-convolutions", "float64"],
)  # fmt: skip
def test_where_nothing_can_be_changed(
    make: Callable[[], ExitNetwork], execution: Execution, message: str
) -> None:
    with pytest.raises(InputError) as error:
        SpanProvider(make(), execution)
    assert str(error.value).startswith(message)


def test_int8_needs_linear_layers() -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(toys.Residual(4) for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x).mean((2, 3))

    net = attach_exits(toys.seeded(Convolutions), toys.randn(4, 6, 6)(2), heads=("linear",))
    with pytest.raises(InputError, match="expected linear layers to quantise, found none in Convolutions"):
        SpanProvider(net, INT8)


@pytest.mark.parametrize("execution", [BFLOAT16, Execution(compile="aot")], ids=lambda how: how.name)
def test_models_that_are_quantised_already_are_refused(execution: Execution) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = toys.seeded(lambda: zoo.quantised(lambda _: Model(torch.tanh))(0))
    net = attach_exits(model, toys.randn(8)(2), heads=("linear",))
    with pytest.raises(InputError, match="expected layers of floating point, got a model with int8 layers"):
        SpanProvider(net, execution)


def editable(model: nn.Module, example: Tensor) -> EditableGraph:
    parts = partition(model, example)
    return editable_graph(parts.span(0, len(parts.cuts) + 1), parts.flow, parts.border(0))


def test_a_model_with_autocast_inside_is_refused() -> None:
    _, _, parts = toys.cut("autocast")
    found = editable_graph(parts.span(0, len(parts.cuts) + 1), parts.flow, parts.border(0))
    with pytest.raises(InputError, match="the model switches types or gradients itself"):
        cast_features(found, torch.bfloat16)


def layer(bias: bool = True) -> tuple[Int8Linear, nn.Linear, Tensor]:
    linear = toys.seeded(lambda: nn.Linear(16, 5, bias=bias))
    return (
        Int8Linear(linear.weight.detach(), linear.bias.detach() if bias else None),
        linear,
        toys.randn(16)(300),
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_int8_layers_are_what_integers_say(bias: bool) -> None:
    int8, linear, x = layer(bias)
    x[7] = 0
    with torch.no_grad():
        w, a = linear.weight.double(), x.double()
        ws, xs = w.abs().amax(1) / 127, a.abs().amax(1, keepdim=True).clamp(min=1e-300) / 127
        wanted = (a / xs).round() @ (w / ws[:, None]).round().T * xs * ws
        wanted = wanted + linear.bias if bias else wanted
        assert difference(int8(x).double(), wanted) < 0.01  # a rounding at the border of two integers
        assert difference(int8(x), linear(x)) < 0.02
    assert bool((int8(x)[7] == (linear.bias if bias else 0)).all())


def test_a_sample_of_an_int8_layer_does_not_know_the_others() -> None:
    int8, _, x = layer()
    alone = torch.cat([int8(row[None]) for row in x])
    assert torch.equal(int8(x), alone)  # 300 rows: more than are computed at a time
    assert torch.equal(int8(x.view(3, 100, 16)), alone.view(3, 100, 5))
    assert int8(x.bfloat16()).dtype == torch.bfloat16


def test_int8_finds_layers_written_as_products() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    model = toys.seeded(Product)
    found = editable(model, toys.randn(8)(2))
    quantise(found, Parameters())
    module, values = found.finish(Parameters())
    assert [type(part).__name__ for part in module.children()] == ["Int8Linear"]
    assert values == ()
    x = toys.randn(8)(5)
    with torch.no_grad():
        assert difference(module.forward(x)[0], model(x)) < 0.03


@pytest.mark.parametrize(
    ("found", "expected", "wanted"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.0, 3.0], [0.0, 4.0], 0.25),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([1.0, float("inf")], [1.0, float("inf")], 0.0),
        ([1.0, float("nan")], [1.0, 1.0], float("inf")),
        ([float("nan")], [float("nan")], 0.0),
        ([1.0], [1.0, 1.0], float("inf")),
    ],
    ids=["same", "quarter", "zeros", "infinite", "not-a-number", "both-not", "shape"],
)
def test_differences(found: list[float], expected: list[float], wanted: float) -> None:
    assert difference(torch.tensor(found), torch.tensor(expected)) == wanted


def test_differences_of_integers_are_none_or_all() -> None:
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")


COMPILERS = ("inductor", "aot")
BUILT = ("inductor", pytest.param("aot", marks=pytest.mark.long))  # a package takes longer to make


@cache
def compiled(compiler: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A span that changes an activation beside the feature and returns it: (compiled, eager)."""
    net, _ = attached("two inputs")
    return SpanProvider(net, Execution(compile=compiler)).span(1, 2), net.partition.span(1, 2)


def apart(compiler: str, batch: int) -> float:
    found, eager = compiled(compiler)
    given = [toys.randn(8)(batch), toys.randn(1)(batch, seed=1)]
    with torch.inference_mode():
        pairs = zip(found(*toys.clone(given)), eager(*toys.clone(given)), strict=True)
        return max(difference(a, b) for a, b in pairs)


@pytest.mark.parametrize("compiler", BUILT)
def test_nothing_is_compiled_later(compiler: str) -> None:
    compiled(compiler)
    before = dict(torch._dynamo.utils.counters["stats"])
    assert max(apart(compiler, batch) for batch in range(1, 65)) < 1e-5
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.extend(apart(compiler, batch) for batch in (1, 3, 17)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    assert max(found) < 1e-5
    assert dict(torch._dynamo.utils.counters["stats"]) == before


@pytest.mark.parametrize("compiler", BUILT)
def test_compiled_spans_take_any_layout_in_memory(compiler: str) -> None:
    found, eager = compiled(compiler)
    x, scale = toys.randn(5)(8).T, toys.randn(2)(5)[:, :1]
    assert not x.is_contiguous()
    with torch.inference_mode():
        pairs = zip(found(x, scale), eager(x.clone(), scale.clone()), strict=True)
        assert max(difference(a, b) for a, b in pairs) < 1e-5


@pytest.mark.parametrize("compiler", COMPILERS)
def test_without_a_compiler(compiler: str) -> None:
    from torch._inductor import config

    net, _ = attached("two inputs")
    without = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with config.patch(without), pytest.raises(InputError) as error:
        SpanProvider(net, Execution(compile=compiler)).span(0, 1)
    assert str(error.value).startswith(f"Execution(compile={compiler!r}): expected a C++ compiler")
    assert "install g++ or clang" in str(error.value)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ["residual", "in-place", "dict", "masked", "encoder"])
def test_compiled_chains_are_close_to_the_model(name: str, compiler: str, dtype: str | None) -> None:
    net, draw = attached(name)
    execution = Execution(compiler, dtype, name in IMAGES)
    for batch in (7, 1):
        assert far(net, execution, flat(net, draw, batch)) <= execution.tolerance
