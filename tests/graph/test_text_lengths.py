"""Texts of many lengths: one network, one answer however a text is padded, costs by length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.errors import InputError

LONGEST, VOCABULARY, PAD = 12, 30, 7


class Encoder(nn.Module):
    """Ids and mask (B, L) to (B, 3): self-attention without padding, positions, a mean over real tokens."""

    def __init__(self, per_token: bool = False, fixed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(VOCABULARY, 8), nn.Embedding(16, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.top, self.per_token, self.fixed = nn.Linear(8, 3), per_token, fixed

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        if token_type_ids is not None:
            x = x + token_type_ids[..., None]
        if self.fixed:
            x = x.view(-1, LONGEST, 8)
        for layer in self.layers:
            x = layer(x, attention_mask)
        if self.per_token:
            return self.top(x)  # type: ignore[no-any-return]
        real = attention_mask[..., None]
        return self.top((x * real).sum(1) / real.sum(1))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.out, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(x) @ x.transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(mask[:, None, :] == 0, torch.finfo(scores.dtype).min)
        return self.norm(x + self.out(scores.softmax(-1) @ x))  # type: ignore[no-any-return]


def texts(count: int = 24, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LONGEST, (count,), generator=random)
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    ids = torch.randint(8, VOCABULARY, (count, LONGEST), generator=random)
    return {"input_ids": torch.where(mask > 0, ids, PAD), "attention_mask": mask}, lengths


def cut(batch: dict[str, Tensor], rows: slice | Tensor, length: int) -> dict[str, Tensor]:
    return {name: value[rows, :length] for name, value in batch.items()}


def buckets(batch: dict[str, Tensor], lengths: Tensor, size: int = 5) -> list[dict[str, Tensor]]:
    """Batches as a collator makes them: each padded to its own longest."""
    rows = torch.arange(len(lengths)).split(size)
    return [cut(batch, each, int(lengths[each].max())) for each in rows]


def network(fixed: bool = False, **options: Any) -> offramp.ExitNetwork:
    batch, _ = texts(3)
    model = Encoder(fixed=fixed, per_token=options.get("task") == "token-classification").eval()
    return offramp.attach_exits(model, {name: value[:3] for name, value in batch.items()}, **options)


@pytest.fixture(scope="module")
def trained() -> offramp.ExitNetwork:
    net, (batch, lengths) = network(heads=("tokens", "mlp", "attention", "conv", "local-global")), texts()
    loader = [(each, torch.arange(len(each["input_ids"])) % 3) for each in buckets(batch, lengths)]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=2, batch_size=8), progress=False)
    return net


def halfway(net: offramp.ExitNetwork, head: str = "tokens") -> offramp.ExitConfig:
    batch, _ = texts()
    confidence = offramp.record_outputs(net, [batch], quality="agreement", progress=False).confidence
    threshold = float(np.median(confidence[1, net.head_names.index(head)]))
    return offramp.ExitConfig((offramp.ExitChoice(net.positions[1], head, threshold),))


@pytest.mark.parametrize("head", ["tokens", "mlp", "attention", "conv", "local-global"])
def test_padded_in_buckets_and_one_by_one_are_the_same(trained: offramp.ExitNetwork, head: str) -> None:
    engine, (batch, lengths) = offramp.Engine(trained, halfway(trained, head)), texts()
    padded = engine(batch)
    one_by_one = [engine(cut(batch, slice(i, i + 1), int(n))) for i, n in enumerate(lengths)]
    in_buckets = [engine(each) for each in buckets(batch, lengths)]
    assert 0 < (padded.position == 1).sum() < len(lengths)
    for others in (one_by_one, in_buckets):
        torch.testing.assert_close(
            torch.cat([o.outputs for o in others]), padded.outputs, rtol=1e-5, atol=1e-6
        )
        assert torch.equal(torch.cat([o.position for o in others]), padded.position)


def test_the_full_model_is_itself_at_any_length(trained: offramp.ExitNetwork) -> None:
    batch, lengths = texts()
    for each in buckets(batch, lengths):
        with torch.no_grad():
            wanted = trained.backbone(**each)
        assert torch.equal(offramp.Engine(trained)(each).outputs, wanted)


def test_records_do_not_depend_on_padding(trained: offramp.ExitNetwork) -> None:
    batch, lengths = texts()
    whole = offramp.record_outputs(trained, [batch], quality="agreement", progress=False)
    parts = offramp.record_outputs(trained, buckets(batch, lengths), quality="agreement", progress=False)
    np.testing.assert_allclose(parts.confidence, whole.confidence, atol=1e-6)


def test_work_saved_counts_real_lengths(trained: offramp.ExitNetwork) -> None:
    engine, (batch, lengths) = offramp.Engine(trained, halfway(trained)), texts()
    expected, full = 0.0, 0.0
    for i, n in enumerate(lengths.tolist()):
        got = engine(cut(batch, slice(i, i + 1), n))
        table = offramp.measure_cost(trained, lengths=[n])
        leaves, column = int(got.position[0]), trained.head_names.index("tokens")
        expected += table.backbone[leaves] + table.heads[1, column]
        full += table.full
    stats = engine.stats()
    assert stats.macs == pytest.approx(expected, rel=1e-12)
    assert stats.full_macs == pytest.approx(full, rel=1e-12)
    engine.reset_stats()
    engine(batch)
    assert engine.stats().macs > expected  # padding is computed, and counted


def test_a_table_that_was_counted_is_counted_by_length_too(trained: offramp.ExitNetwork) -> None:
    batch, lengths = texts()
    short = cut(batch, slice(0, 3), int(lengths[:3].max()))
    found = []
    for costs in (None, offramp.measure_cost(trained), offramp.measure_cost(trained, lengths=[4, 6])):
        engine = offramp.Engine(trained, halfway(trained), costs=costs)
        engine(short)
        found.append((engine.stats().macs, engine.stats().full_macs))
    assert found[0] == found[1] == found[2]
    own = offramp.CostTable(np.arange(4.0), trained.exists * 0.5, "coins")
    engine = offramp.Engine(trained, costs=own)
    engine(short)
    assert engine.stats().macs == engine.stats().full_macs == 9.0


def test_costs_by_length(trained: offramp.ExitNetwork) -> None:
    each = [offramp.measure_cost(trained, lengths=[n]) for n in (4, 8, LONGEST)]
    assert each[2].full == offramp.measure_cost(trained).full
    assert each[0].full < each[1].full < each[2].full
    # L tokens: linear layers go with L, attention with its square, the last layer with neither
    linear, square = 3 * 2 * 8 * 8, 3 * 2 * 8
    for table, n in zip(each, (4, 8, LONGEST), strict=True):
        assert table.full == linear * n + square * n * n + 8 * 3
    mixed = offramp.measure_cost(trained, lengths=[4, 8, 8])
    assert mixed.full == pytest.approx((each[0].full + 2 * each[1].full) / 3)
    assert mixed.meta["mean_tokens"] == pytest.approx(20 / 3)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], r"expected lengths \(N,\) in whole tokens"),
        ([1.5], r"expected lengths \(N,\) in whole tokens, got float64"),
        ([[4]], r"expected lengths \(N,\)"),
        ([4, 17], "expected lengths of 2 to 12 tokens, got 4 to 17"),
    ],
)
def test_wrong_lengths(trained: offramp.ExitNetwork, lengths: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        offramp.measure_cost(trained, lengths=lengths)


def test_lengths_are_for_texts_and_for_counting(trained: offramp.ExitNetwork) -> None:
    with pytest.raises(InputError, match="lengths are for unit='macs'"):
        offramp.measure_cost(trained, unit="seconds", lengths=[4])
    plain = offramp.attach_exits(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 4)
    )
    with pytest.raises(InputError, match="expected a network whose texts may vary in length"):
        offramp.measure_cost(plain, lengths=[4])


def test_texts_longer_than_the_example(trained: offramp.ExitNetwork) -> None:
    longer = {"input_ids": torch.full((2, 15), 9), "attention_mask": torch.ones(2, 15).long()}
    message = "expected 2 to 12 tokens, got 15; attach the model with an example padded to the longest text"
    for use in (
        lambda: offramp.Engine(trained)(longer),
        lambda: offramp.record_outputs(trained, [longer], quality="agreement", progress=False),
        lambda: trained(longer),
    ):
        with pytest.raises(InputError, match=message):
            use()
    with offramp.StreamEngine(trained) as stream, pytest.raises(InputError, match=message):
        stream.submit({name: value[:1] for name, value in longer.items()})


def test_inputs_of_different_lengths_are_refused(trained: offramp.ExitNetwork) -> None:
    wrong = {"input_ids": torch.full((2, 5), 9), "attention_mask": torch.ones(2, 6).long()}
    with pytest.raises(InputError, match=r"input 'attention_mask': expected shape \(B, 5\), got \(2, 6\)"):
        offramp.Engine(trained)(wrong)
    with pytest.raises(InputError, match="input 'input_ids': expected shape"):
        offramp.Engine(trained)({**wrong, "input_ids": torch.ones(2).long()})


def test_streams_take_texts_of_any_length(trained: offramp.ExitNetwork) -> None:
    config, (batch, lengths) = halfway(trained), texts()
    wanted = offramp.Engine(trained, config)(batch)
    with offramp.StreamEngine(trained, config) as stream:
        futures = [stream.submit(cut(batch, slice(i, i + 1), int(n))) for i, n in enumerate(lengths)]
        got = torch.stack([torch.as_tensor(future.result(20).output) for future in futures])
    torch.testing.assert_close(got, wanted.outputs, rtol=1e-5, atol=1e-6)


def test_a_model_of_one_length_gets_texts_filled_up() -> None:
    net, (batch, lengths) = network(fixed=True, heads=("tokens",)), texts()
    assert net.partition.spec.lengths is not None
    assert not net.partition.spec.lengths.vary
    loader = [(each, torch.zeros(len(each["input_ids"])).long()) for each in buckets(batch, lengths)]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=1), progress=False)
    engine = offramp.Engine(net)
    got = torch.cat([engine(each).outputs for each in buckets(batch, lengths)])
    torch.testing.assert_close(got, engine(batch).outputs)
    with pytest.raises(InputError, match="expected at most 12, as in example_inputs tokens, got 13"):
        engine({"input_ids": torch.full((1, 13), 9), "attention_mask": torch.ones(1, 13).long()})


@pytest.mark.parametrize("fixed", [False, True])
def test_every_token_of_texts_of_any_length(fixed: bool) -> None:
    net, (batch, lengths) = network(fixed, heads=("linear",), task="token-classification"), texts()
    loader = [
        {**each, "labels": torch.where(each["attention_mask"] > 0, each["input_ids"] % 3, -100)}
        for each in buckets(batch, lengths)
    ]
    offramp.train_exits(net, loader, config=offramp.TrainConfig(epochs=1), progress=False)
    records = offramp.record_outputs(net, loader, progress=False)
    assert records.final_quality.shape == (24,)
    engine, whole = offramp.Engine(net), offramp.Engine(net)(batch).outputs
    for i, n in enumerate(lengths.tolist()):
        got = engine(cut(batch, slice(i, i + 1), n)).outputs
        assert got.shape == (1, n, 3)
        torch.testing.assert_close(got[0], whole[i, :n], rtol=1e-5, atol=1e-6)
    with offramp.StreamEngine(net) as stream:
        for i, n in enumerate(lengths.tolist()[:6]):
            alone = {name: value[i, :n] for name, value in batch.items()}  # no dimension for the batch
            output = stream.submit(alone).result(20).output
            assert output.shape == (n, 3)
            torch.testing.assert_close(output, whole[i, :n], rtol=1e-5, atol=1e-6)
    both = offramp.MultiEngine({"tokens": net})
    short = cut(batch, slice(0, 3), int(lengths[:3].max()))
    torch.testing.assert_close(both(short)["tokens"].outputs, engine(short).outputs)


class Scores(nn.Module):
    """The only thing alive behind ``pairs`` is how the tokens fit each other, (B, L, L)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.first, self.pairs = nn.Embedding(VOCABULARY, 8), Layer(), Pairs()
        self.top = nn.Linear(1, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        pairs = self.pairs(self.first(self.words(input_ids), attention_mask))
        return self.top(pairs.mean((1, 2))[:, None])  # type: ignore[no-any-return]


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(8, 8), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x) @ x.transpose(1, 2))  # type: ignore[no-any-return]


def test_no_exit_where_the_width_follows_the_length() -> None:
    batch, _ = texts(3)
    net = offramp.attach_exits(Scores().eval(), batch, heads=("linear",), cuts="all")
    assert net.partition.spec.lengths is not None
    assert net.partition.spec.lengths.vary
    shapes = {cut.name: cut.shape for cut in net.partition.cuts}
    assert shapes["pairs"] == (1,)  # behind the mean: the scores themselves have no width of their own
    assert shapes["first"] == (LONGEST, 8)
    given = offramp.partition(Scores().eval(), batch, layouts={"pairs": "NLC"})
    assert (LONGEST, LONGEST) not in [cut.shape for cut in given.legal]


def test_what_texts_are_filled_up_with() -> None:
    batch, _ = texts(3)
    filled = offramp.attach_exits(Encoder().eval(), batch).partition.spec.padded(
        [value[:, :9] for value in batch.values()]
    )
    assert [value[:, 9:].unique().tolist() for value in filled] == [[PAD], [0]]
    model = Encoder().eval()
    padding = offramp.attach_exits(model, batch).partition.spec.lengths.padding  # type: ignore[union-attr]
    assert padding == (PAD, 0)  # seen in the example
    model.config = type("Config", (), {"pad_token_id": 3})()  # type: ignore[assignment]
    full = {name: value[:, :2] for name, value in batch.items()} | {"token_type_ids": torch.ones(3, 2).long()}
    lengths = offramp.attach_exits(model, full).partition.spec.lengths
    assert lengths is not None
    assert lengths.padding == (3, 0, 0)


def test_compiled_execution_runs_texts_at_one_length(trained: offramp.ExitNetwork) -> None:
    engine = offramp.Engine(trained, execution=offramp.Execution(dtype="bfloat16"))
    batch, lengths = texts()
    whole = engine(batch).outputs
    for each, rows in zip(buckets(batch, lengths), torch.arange(24).split(5), strict=True):
        torch.testing.assert_close(engine(each).outputs, whole[rows], rtol=0.05, atol=0.05)
