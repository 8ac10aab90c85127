"""Models as people bring them: wrapped, called in their own way, returning more than an answer."""

from __future__ import annotations

import copy
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import offramp
from offramp.errors import InputError, PartitionError
from offramp.graph.adapter import hooks_off, unwrapped

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
TOKENS = {"ids": torch.arange(12).view(2, 6), "mask": torch.ones(2, 6)}


class Net(nn.Module):
    """(B, 6) to (B, 3), with cuts after blocks.0 and blocks.1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.top = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.top(x)  # type: ignore[no-any-return]


def logits(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def exits_equal_the_model(net: offramp.ExitNetwork, inputs: Any, wanted: Tensor) -> None:
    assert len(net.positions) > 2
    assert torch.equal(offramp.Engine(net)(inputs).outputs, wanted)


class PassesOn(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "averaged, compiled": lambda model: torch.compile(torch.optim.swa_utils.AveragedModel(model)),
    "exponential average": lambda model: torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ),
    "one's own": PassesOn,
    "twice": lambda model: PassesOn(PassesOn(model)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = Net().eval()
    net = offramp.attach_exits(wrap(model).eval(), X, heads=("linear",))
    exits_equal_the_model(net, X, logits(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_wrappers_are_seen_through() -> None:
    model = Net().eval()
    assert offramp.attach_exits(nn.DataParallel(model), X, heads=("linear",)).backbone is model
    assert unwrapped(torch.compile(nn.DataParallel(model))) is model
    assert unwrapped(model) is model


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.net(inputs["x"])  # type: ignore[no-any-return]


class OneDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "scores": self.net(batch["x"])}


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, scale: Tensor | None = None, *, labels: Tensor | None = None) -> Any:
        out = self.net(x if scale is None else x * scale[:, None])
        return out if labels is None else (out.sum(), out)


def test_keywords_of_any_name() -> None:
    model = Keywords().eval()
    exits_equal_the_model(
        offramp.attach_exits(model, {"x": X}, heads=("linear",)), {"x": X}, logits(model.net)
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_dict_in_one_dict_out(wrapped: bool) -> None:
    model, inputs = OneDict().eval(), {"x": X}
    example: Any = (inputs,) if wrapped else inputs
    net = offramp.attach_exits(model, example, heads=("linear",), output="scores")
    assert net.partition.spec.mapping
    exits_equal_the_model(net, inputs, logits(model.net))
    exits_equal_the_model(net, (inputs,), logits(model.net))
    loader = [(inputs, torch.tensor([0, 1, 2, 0]))]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=1), progress=False)
    assert offramp.record_outputs(net, loader, progress=False).confidence.shape[2] == 4


@pytest.mark.parametrize("example", [X, (X,), {"x": X}, (X, torch.ones(4)), {"x": X, "scale": torch.ones(4)}])
def test_arguments_left_out(example: Any) -> None:
    model = Optional().eval()
    net = offramp.attach_exits(model, example, heads=("linear",))
    exits_equal_the_model(net, example, logits(model.net))


def test_labels_in_the_example_are_left_out() -> None:
    model = Optional().eval()
    batch = {"x": X, "labels": torch.tensor([0, 1, 2, 0])}
    net = offramp.attach_exits(model, batch, heads=("linear",))
    assert net.partition.spec.names == ("x",)
    exits_equal_the_model(net, batch, logits(model.net))


@pytest.mark.parametrize(
    ("model", "batch"),
    [(Net(), (X, torch.tensor([0, 1, 2, 0]))), (Keywords(), ({"x": X}, torch.tensor([0, 1, 2, 0])))],
)
def test_a_pair_with_labels_is_no_example(model: nn.Module, batch: Any) -> None:
    with pytest.raises(InputError, match=r"looks like \(inputs, labels\); pass its first item"):
        offramp.attach_exits(model.eval(), batch)


def test_an_example_without_a_batch_dimension() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)).eval()
    with pytest.raises(InputError, match=r"one sample without a batch dimension: pass example\.unsqueeze"):
        offramp.attach_exits(model, torch.randn(3, 8, 8))


Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Answer:
    scores: Tensor
    features: Tensor


class Returns(nn.Module):
    def __init__(self, pack: Callable[[Tensor, list[Tensor]], Any]) -> None:
        super().__init__()
        self.net, self.pack = Net(), pack

    def forward(self, x: Tensor) -> Any:
        kept = []
        for block in self.net.blocks:
            x = x + block(x)
            kept.append(x)
        return self.pack(self.net.top(x), kept)


@pytest.mark.parametrize(
    ("pack", "output"),
    [
        (lambda y, h: (y, h), 0),
        (lambda y, h: (h, y), -1),
        (lambda y, h: (None, y, *h), 1),
        (lambda y, h: Pair(y, h[0]), None),
        (lambda y, h: Pair(h[0], y), "features"),
        (lambda y, h: {"logits": y, "hidden": h, "note": "a string"}, None),
        (lambda y, h: {"out": {"logits": y}, "aux": h[0]}, "out.logits"),
        (lambda y, h: {"out": {"logits": y}, "aux": h[0]}, ("out", "logits")),
        (lambda y, h: {"out": [h[0], y]}, "out.1"),
        (lambda y, h: {"a.b": y, "a": h[0]}, "a.b"),
        (lambda y, h: [{"logits": y}], None),
        (lambda y, h: Answer(y, h[1]), "scores"),
        (lambda y, h: SimpleNamespace(logits=y, cache=object()), None),
    ],
)
def test_the_answer_is_picked_out_of_what_is_returned(pack: Any, output: Any) -> None:
    model = Returns(pack).eval()
    net = offramp.attach_exits(model, X, heads=("linear",), output=output)
    assert net.positions == ("input", "net.blocks.0", "net.blocks.1", "net.blocks.2")
    assert net.output is None or isinstance(net.output, (str, int))
    exits_equal_the_model(net, X, logits(model.net))


@pytest.mark.parametrize(
    ("pack", "output", "message"),
    [
        (lambda y, h: {"out": {"logits": y}, "aux": h[0].sum(1)}, None, r"output='out.logits'"),
        (
            lambda y, h: {"out": {"logits": y}},
            "out.scores",
            r"no 'scores' in .'logits': .B, 3..; pass output",
        ),
        (lambda y, h: (y, h[0]), 2, r"no 2 in .0: .B, 3., 1: .B, 6..; pass output=<one of its keys>"),
        (lambda y, h: (y, h[0]), 1.5, "expected a key or an index of the answer"),
        (lambda y, h: (y, h[0]), (), "expected a key or an index of the answer"),
    ],
)
def test_an_answer_that_is_not_there(pack: Any, output: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        offramp.attach_exits(Returns(pack).eval(), X, output=output)


class WithCache(nn.Module):
    """Returns a cache of a class that the tracer does not know, unless told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, use_cache: bool = True) -> Any:
        cache = SimpleNamespace(keys=[x.clone()]) if use_cache else None
        return {"logits": self.net(x), "cache": cache}


def test_a_cache_is_not_made() -> None:
    model = WithCache().eval()
    exits_equal_the_model(
        offramp.attach_exits(model, {"x": X}, heads=("linear",)), {"x": X}, logits(model.net)
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_models_and_parts_are_refused() -> None:
    whole = torch.jit.script(Net().eval())
    traced = torch.jit.trace(Net().eval(), X)
    part = Net().eval()
    part.blocks[1] = torch.jit.script(part.blocks[1])
    for model, what in ((whole, "it is"), (traced, "it is"), (part, "its part 'blocks.1' is")):
        with pytest.raises(PartitionError, match=f"{what} a scripted module .*pass the Python module"):
            offramp.attach_exits(model, X)


def test_exported_programs_are_refused() -> None:
    dims = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Net().eval(), (X,), dynamic_shapes=dims)
    with pytest.raises(
        PartitionError, match=r"it is a program of torch\.export already.*pass the Python module"
    ):
        offramp.attach_exits(program.module(), X)
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module, got ExportedProgram"):
        offramp.attach_exits(program, X)  # type: ignore[arg-type]


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated, and still met
    scripted_swish = torch.jit.script(swish)


class OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Between(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = Net(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def keeps(model: nn.Module, x: Tensor) -> Tensor:
    model.last = x
    model.kept = [block(x) for block in model.net.blocks]
    return model.net(x)  # type: ignore[no-any-return]


INSIDE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a scripted function": lambda model, x: model.net(scripted_swish(x)),
    "a function with its own gradient": lambda model, x: model.net(OwnGradient.apply(x)),
    "no gradients": lambda model, x: torch.no_grad()(model.net)(x),
    "inference mode": lambda model, x: torch.inference_mode()(model.net)(x),
    "the batch turned round": lambda model, x: model.net(x.flip(0)).flip(0),
    "checks of shapes": lambda model, x: model.net(x) if x.shape[1] == 6 and x.ndim == 2 else x,
    "what is kept on the model": keeps,
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_models_do_inside(name: str) -> None:
    model = Between(INSIDE[name]).eval()
    exits_equal_the_model(offramp.attach_exits(model, X, heads=("linear",)), X, logits(model))
    for kept in (getattr(model, "last", X), *getattr(model, "kept", ())):
        assert type(kept) is Tensor  # no tensor of the tracer's


class Fixed(nn.Module):
    def __init__(self, how: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.net, self.how = Net(), how

    def forward(self, x: Tensor) -> Tensor:
        count = self.how(x)
        return self.net(x).view(count, -1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", [len, lambda x: int(x.shape[0]), lambda x: list(range(x.size(0)))[-1] + 1])
def test_the_line_that_fixes_the_batch_size_is_named(how: Callable[[Tensor], int]) -> None:
    with pytest.raises(PartitionError, match=r"(?s)test_adapter.py, line \d+.*x\.shape\[0\] instead of len"):
        offramp.attach_exits(Fixed(how).eval(), X)


class Made(nn.Module):
    """A value made of constants is changed in place, in front of the cuts or between them."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.net, self.late, self.table = Net(), late, nn.Embedding(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(6)
        bucket = torch.zeros(6, dtype=torch.long)
        view = bucket[2:]
        bucket += (index > 2).long() * 3
        view.add_(1)
        for block in self.net.blocks:
            x = x + block(x) + self.table(bucket)[0]
            if self.late:
                bucket[1] += 1
        return self.net.top(x) + self.table(bucket).mean(0)[:3]  # type: ignore[no-any-return]


@pytest.mark.parametrize("late", [False, True])
def test_values_made_of_constants_and_changed_in_place(late: bool) -> None:
    model = Made(late).eval()
    exits_equal_the_model(offramp.attach_exits(model, X, heads=("linear",)), X, logits(model))


class Squeezed(nn.Module):
    def __init__(self, squeeze: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.squeeze = Net(), squeeze

    def forward(self, x: Tensor) -> Tensor:
        return self.squeeze(self.net(x)[..., None])


@pytest.mark.parametrize("squeeze", [torch.squeeze, lambda y: y.squeeze(-1).squeeze(0)])
def test_an_answer_without_a_batch_is_refused(squeeze: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(PartitionError, match="answer to one sample has no batch dimension"):
        offramp.attach_exits(Squeezed(squeeze).eval(), X)


def test_a_squeeze_of_the_last_dimension_is_no_fault() -> None:
    model = Squeezed(lambda y: y.squeeze(-1)).eval()
    exits_equal_the_model(offramp.attach_exits(model, X, heads=("linear",)), X, logits(model))


def test_hooks_of_users_get_no_fake_tensors_and_are_not_called_by_engines() -> None:
    model, seen = Net().eval(), []
    model.blocks[1].register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    model.blocks[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net = offramp.attach_exits(model, X, heads=("linear",))
    assert all(
        type(each) is Tensor for group in seen for each in (group if type(group) is tuple else (group,))
    )
    count = len(seen)
    offramp.Engine(net)(X)
    assert len(seen) == count
    model(X)
    assert len(seen) == count + 3  # they are the model's as before


def test_hooks_that_change_values_are_part_of_the_graph() -> None:
    model = Net().eval()
    model.blocks[1].register_forward_hook(lambda _, __, output: output * 2)
    model.blocks[2].register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    exits_equal_the_model(offramp.attach_exits(model, X, heads=("linear",)), X, logits(model))


def test_hooks_of_torch_are_kept() -> None:
    model = Net().eval()
    prune.random_unstructured(model.blocks[1][0], "weight", 0.5)
    nn.utils.parametrizations.weight_norm(model.blocks[2][0])
    exits_equal_the_model(offramp.attach_exits(model, X, heads=("linear",)), X, logits(model))


def test_hooks_are_put_back_in_their_order() -> None:
    model, order = Net(), []
    for i in range(3):
        model.register_forward_hook(lambda *_, i=i: order.append(i))
    with hooks_off(model) as any_removed:
        model(X)
    assert any_removed
    assert order == []
    model(X)
    assert order == [0, 1, 2]


class Forwarded(Net):
    """``forward`` is set on the instance, as libraries that place parts on devices do."""


def test_a_forward_of_the_instance_is_kept() -> None:
    model = Forwarded().eval()
    own = model.forward
    model.forward = lambda x: own(x) * 3  # type: ignore[method-assign]
    replaced = model.forward
    net = offramp.attach_exits(model, X, heads=("linear",))
    exits_equal_the_model(net, X, logits(model))
    assert model.forward is replaced
    assert type(model) is Forwarded


def test_a_replaced_layer_is_noticed() -> None:
    for path in ("top", "blocks.1.0", "blocks.1"):
        model = Net().eval()
        net = offramp.attach_exits(model, X, heads=("linear",))
        engine = offramp.Engine(net)
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, copy.deepcopy(model.get_submodule(path)))
        message = f"its part '{path}' is another module, replaced after attach_exits; attach exits again"
        for use in (lambda e=engine: e(X), lambda n=net: offramp.Engine(n), lambda n=net: n(X)):
            with pytest.raises(InputError, match=message):
                use()


def test_a_removed_layer_is_noticed() -> None:
    model = Net().eval()
    net = offramp.attach_exits(model, X, heads=("linear",))
    del model.blocks[2]
    with pytest.raises(InputError, match="one of its parts is gone, replaced after attach_exits"):
        offramp.Engine(net)


def test_a_parameter_that_is_gone_is_noticed() -> None:
    for path in ("blocks.0.0", "top"):
        model = Net().eval()
        engine = offramp.Engine(offramp.attach_exits(model, X, heads=("linear",)))
        prune.random_unstructured(model.get_submodule(path), "weight", 0.5)
        with pytest.raises(
            InputError, match=r"a parameter or buffer 'weight' is gone .*; attach exits again"
        ):
            engine(X)


def test_weights_may_change_after_attaching() -> None:
    model = Net().eval()
    engine = offramp.Engine(offramp.attach_exits(model, X, heads=("linear",)))
    with torch.no_grad():
        model.top.weight.mul_(2)
    model.blocks[0][0].weight = nn.Parameter(torch.ones(6, 6))
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    assert torch.equal(engine(X).outputs, logits(model))


@pytest.mark.parametrize("move", [lambda m: m.half(), lambda m: m.double(), lambda m: m.to("meta")])
def test_a_moved_or_cast_model_is_one_clear_error(move: Callable[[nn.Module], nn.Module]) -> None:
    model = Net().eval()
    net = offramp.attach_exits(model, X, heads=("linear",))
    engine, loader = offramp.Engine(net), [(X, torch.tensor([0, 1, 2, 0]))]
    move(model)
    for use in (lambda: engine(X), lambda: offramp.train_exits(net, loader), lambda: net.forward_all(X)):
        with pytest.raises(InputError, match="was moved or cast after attach_exits: expected parameters in"):
            use()


def test_heads_cannot_be_moved_away_from_the_model() -> None:
    net = offramp.attach_exits(Net().eval(), X, heads=("linear",))
    for move in (lambda: net.to("meta"), net.half, net.double):
        with pytest.raises(InputError, match="move the model first, then attach exits"):
            move()
    assert net.to("cpu").float() is net
