"""The benchmark with other compression: its networks, what is chosen on which split, and fair timing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import offramp
from bench.fashion_mnist.fashion import Fashion
from bench.fashion_mnist.resnet import Block, ResNet
from bench.shared.backbones import accuracy
from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable
from offramp.core.records import ExitRecords
from offramp.graph.dynamic_quant import packed_layers
from offramp.network.fingerprint import model_digest

FOLDER = "compression"
MODULES = ("vision", "backbones", "networks", "compare", "timing", "picture", "run")


@pytest.fixture(scope="module")
def transformer(bench):
    torch.manual_seed(0)
    return bench.vision.Transformer(width=32, depth=3, heads=2).eval()


def images(count, seed=0):
    """Images whose class is how bright they are, moved or not; (N, 1, 28, 28) and (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return torch.randn(count, 1, 28, 28, generator=generator) + labels[:, None, None, None], labels


# ------------------------------------------------------------------------------------------------ networks


def test_transformer_has_exits_between_blocks(bench, transformer):
    assert bench.networks.cuts(transformer, images(2)[0]) == ["blocks.0", "blocks.1"]


def test_long_chains_have_exits_at_every_third_block(bench):
    model = ResNet(32).eval()
    names = bench.networks.cuts(model, images(2)[0])
    assert names == ["layer1.0", "layer1.3", "layer2.1", "layer2", "layer3.2"]


def test_quantised_is_a_copy_of_which_every_linear_layer_is_packed(bench, transformer):
    small = bench.backbones.quantised(transformer)
    assert len(packed_layers(small)) == 3 * 4 + 2
    assert packed_layers(transformer) == []
    pixels = images(8)[0]
    with torch.inference_mode():
        exact, near = transformer(pixels), small(pixels)
    assert not torch.equal(exact, near)
    assert torch.allclose(exact, near, atol=0.05 * float(exact.abs().max()))


def test_quantised_twice_is_the_same_model(bench, transformer):
    first, second = (bench.backbones.quantised(transformer) for _ in range(2))
    assert model_digest(first) == model_digest(second)


@pytest.fixture(scope="module")
def residual(bench):
    torch.manual_seed(0)
    model = ResNet(8).eval()
    for module in model.modules():  # fresh ones scale all channels alike
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0)
    return model


def test_pruned_halves_the_macs_and_keeps_the_outputs_of_blocks(bench, residual):
    pytest.importorskip("torch_pruning")
    before, pixels = model_digest(residual), images(2)[0]
    small = bench.backbones.pruned(residual, pixels)
    share = bench.backbones.macs(small, 1, 28, 28) / bench.backbones.macs(residual, 1, 28, 28)
    assert 0.4 < share <= 0.5
    wide, narrow = (
        [block for block in model.modules() if isinstance(block, Block)] for model in (residual, small)
    )
    assert [b.conv2.out_channels for b in narrow] == [b.conv2.out_channels for b in wide] == [16, 32, 64]
    assert sum(b.conv1.out_channels for b in narrow) < sum(b.conv1.out_channels for b in wide)
    assert model_digest(residual) == before


def test_a_pruned_network_is_built_from_its_stored_weights(bench, residual):
    block = residual.layer2[0]
    keep = torch.arange(0, 32, 3)
    state = dict(residual.state_dict())
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        state[f"layer2.0.{name}"] = state[f"layer2.0.{name}"][keep]
    state["layer2.0.conv2.weight"] = state["layer2.0.conv2.weight"][:, keep]
    small, pixels = bench.backbones.resnet_like(state, depth=8), images(3)[0]
    assert small.layer2[0].conv1.out_channels == len(keep)
    assert small.layer2[0].stride == block.stride
    lesser = bench.backbones.deepcopy(residual)
    gone = torch.ones(32, dtype=torch.bool).scatter(0, keep, False)
    lesser.layer2[0].conv2.weight.data[:, gone] = 0  # removed channels contribute nothing
    with torch.inference_mode():
        assert torch.allclose(small(pixels), lesser(pixels), atol=1e-5)


@pytest.mark.parametrize("moved", [True, False])
def test_training_learns(bench, moved):
    torch.manual_seed(0)
    model = bench.vision.Transformer(width=16, depth=1, heads=2)
    torch.nn.init.zeros_(model.linear.weight)
    data = images(128)
    before = accuracy(model.eval(), data)
    fitted = bench.backbones.train(model, data, epochs=100, peak=1e-2, moved=moved)
    assert not fitted.training
    assert accuracy(fitted, data) > before + 0.15


@pytest.mark.parametrize(
    ("name", "trained"),
    [("transformer", "transformer"), ("transformer-int8", "transformer"), ("resnet56-pruned", "pruned")],
)
def test_missing_weights_say_how_to_make_them(bench, tmp_path, name, trained):
    path, command = f"fashion_{trained}.safetensors", "python bench/compression backbones"
    with pytest.raises(FileNotFoundError, match=rf"{path}: expected .*{command} --out .* --only {trained}$"):
        bench.backbones.load(name, tmp_path, tmp_path)


# ------------------------------------------------------------------------------------- choosing on search


def made(bench, full, exit_quality, seed):
    """A network of one exit at half of the cost, with records only: more confident where it is right."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        final = (rng.random(1000) < full).astype(np.float32)
        right = (rng.random(1000) < exit_quality).astype(np.float32)
        sure = np.where(right > 0, 0.5 + 0.5 * rng.random(1000), 0.7 * rng.random(1000)).astype(np.float32)
        confidence, quality = np.zeros((2, 1, 1000), np.float32), np.zeros((2, 1, 1000), np.float32)
        confidence[1, 0], quality[1, 0] = sure, right
        exists = np.array([[False], [True]])
        parts.append(ExitRecords(confidence, quality, final, exists, ("input", "half"), ("linear",)))
    costs = CostTable(np.array([0, 50.0, 100.0]), np.array([[0.0], [1.0]]), "macs")
    frontier = offramp.search(parts[0], costs)
    return bench.networks.Made(None, frontier, costs, *parts, replace(costs, backbone=2 * costs.backbone))


def test_the_drop_is_allowed_under_the_uncompressed_model(bench):
    full, small = made(bench, 0.95, 0.85, 0), made(bench, 0.93, 0.85, 1)
    rows = bench.compare.compare(full, small, drops=(0.01, 0.05))
    assert [(row["way"], row.get("allowed")) for row in rows] == [
        ("full", None),
        ("compressed", None),
        ("exits", 0.01),
        ("both", 0.01),
        ("exits", 0.05),
        ("both", 0.05),
    ]
    assert rows[0]["drop"] == rows[0]["drop_on_search"] == 0
    assert rows[0]["macs"] == 1
    reference = full.search.final_quality.mean(dtype=np.float64)
    alone = reference - small.search.final_quality.mean(dtype=np.float64)
    assert rows[1]["drop_on_search"] == pytest.approx(alone)
    for row in rows[2:]:
        assert row["config"] is None or row["drop_on_search"] <= row["allowed"] + 1e-9


def test_a_drop_that_nothing_keeps_within_has_no_figures(bench):
    full, small = made(bench, 0.99, 0.6, 0), made(bench, 0.8, 0.6, 1)
    row = bench.compare.compare(full, small, drops=(0.001,))[-1]
    assert row == {"way": "both", "config": None, "allowed": 0.001}


def test_cheapest_is_the_first_good_enough(bench):
    frontier = made(bench, 0.95, 0.85, 0).frontier
    assert len(frontier) > 3
    middle = frontier[2].expected.quality
    assert bench.compare.cheapest(frontier, middle) == frontier[2]
    assert bench.compare.cheapest(frontier, frontier[-1].expected.quality + 1e-6) is None


def test_figures_are_of_the_report_split(bench):
    full = made(bench, 0.95, 0.85, 0)
    config = full.frontier[0]
    row = bench.compare.row("exits", full, full, config)
    outcome = offramp.evaluate(full.report, full.costs, config)
    assert row["accuracy"] == outcome.quality != offramp.evaluate(full.search, full.costs, config).quality
    assert row["drop"] == pytest.approx(full.report.final_quality.mean(dtype=np.float64) - outcome.quality)
    assert row["macs"] == pytest.approx(offramp.evaluate(full.report, full.macs, config).relative_cost)
    assert row["macs"] != pytest.approx(outcome.relative_cost)  # chosen by other costs than MACs


# ----------------------------------------------------------------------------------------------- the clock


def test_all_take_turns_on_every_batch(bench):
    calls, pixels, labels = [], *images(30)
    data = bench.timing.full_batches((pixels, labels), 4)
    assert [len(batch[0]) for batch in data] == [4] * 7

    def answering(name, offset):
        def call(batch):
            calls.append((name, batch))
            rows = torch.cat([labels[(pixels == image).flatten(1).all(1)] for image in batch])
            return torch.nn.functional.one_hot((rows + offset) % 10, 10)

        return call

    answers = {"a": answering("a", 0), "b": answering("b", 1), "c": answering("c", 0)}
    seconds, right = bench.timing.side_by_side(answers, data, rounds=2)
    assert {name: values.shape for name, values in seconds.items()} == dict.fromkeys("abc", (2, 7))
    assert all((values > 0).all() for values in seconds.values())
    assert right == {"a": 28, "b": 0, "c": 28}
    timed = calls[3 * 7 :]  # after the warm-up
    turns = ["".join(name for name, _ in timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(turns) == 14
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 3  # none always follows the same other
    for i in range(0, len(timed), 3):
        assert len({id(batch) for _, batch in timed[i : i + 3]}) == 1


def test_singles_are_the_first_images(bench):
    pixels, labels = images(9)
    data = bench.timing.full_batches((pixels, labels), 1, most=5)
    assert torch.equal(torch.cat([batch[0] for batch in data]), pixels[:5])


def test_without_exits_the_plain_model_is_timed(bench, transformer):
    made = SimpleNamespace(net=SimpleNamespace(backbone=transformer))
    assert bench.timing.caller(made, ExitConfig()) is transformer


def test_from_backbones_to_a_table_and_a_picture(bench, transformer, tmp_path, monkeypatch, capsys):
    data = Fashion(images(192), images(150, 1), images(150, 2))
    models = {"transformer": transformer, "transformer-int8": bench.backbones.quantised(transformer)}
    setting = bench.networks.Setting(images=128, epochs=2)
    for name, model in models.items():
        bench.networks.make(tmp_path / name, model, data, setting)
    capsys.readouterr()
    bench.networks.make(tmp_path / "transformer", transformer, data, setting)
    assert capsys.readouterr().out == ""  # it was there
    monkeypatch.setattr(bench.backbones, "load", lambda name, *_: models[name])
    monkeypatch.setattr(  # measuring takes long, and has a test of its own
        bench.run,
        "in_seconds",
        lambda made, size, images: replace(made, costs=replace(made.costs, unit="seconds")),
    )
    tables = bench.run.one_kind(list(models), tmp_path, tmp_path, data, {1: 5, 64: None})
    assert list(tables) == ["macs", "1", "64"]
    assert len(tables["64"]) == 2 + 2 * len(bench.compare.DROPS)
    for rows in tables.values():
        assert [row["way"] for row in rows[:2]] == ["full", "compressed"]
        assert [row["macs"] for row in rows[:2]] == [1.0, 1.0]
    timed = [row for size in ("1", "64") for row in tables[size] if row["config"] is not None]
    assert len(timed) > 4  # backbones that know nothing are easily matched by their exits
    assert all(row["ms"] > 0 and row["time"] > 0 for row in timed)
    assert tables["1"][0]["time"] == tables["64"][0]["time"] == 1.0
    head = (data.test[0][:128], data.test[1][:128])
    assert tables["64"][0]["answered"] == pytest.approx(accuracy(transformer, head))
    bench.run.print_table("int8", "64", [*tables["64"], {"way": "both", "config": None, "allowed": 0.0025}])
    printed = capsys.readouterr().out
    assert "int8 alone" in printed
    assert "nothing keeps within it" in printed
    less = {size: rows[:2] for size, rows in tables.items()}
    bench.run.write(tmp_path, "pruned", less)
    bench.run.write(tmp_path, "int8", less)
    bench.run.write(tmp_path, "int8", tables)  # takes the place of the earlier ones
    assert json.loads((tmp_path / "compression.json").read_text()) == {"int8": tables, "pruned": less}
    assert (tmp_path / "compression.png").stat().st_size > 5000


def test_costs_in_seconds_are_searched_with(bench, transformer, tmp_path):
    data = Fashion(images(64), images(80, 1), images(64, 2))
    bench.networks.make(tmp_path / "a", transformer, data, bench.networks.Setting(images=64, epochs=1))
    made = bench.networks.load(tmp_path / "a", transformer)
    priced = bench.networks.in_seconds(made, 4, data.held_out[0][:4])
    assert made.costs.unit == priced.macs.unit == "macs"
    assert priced.costs.unit == "seconds"
    assert priced.costs.meta["batch_size"] == 4
    assert priced.frontier[0].expected.full_cost == priced.costs.full
