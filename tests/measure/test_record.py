"""Records equal a loop by hand over every exit, and are resumed after an interruption."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import offramp
import small
from offramp import TrainConfig, record_outputs, train_exits
from offramp.data import row_store
from offramp.errors import InputError


@pytest.fixture(scope="module")
def net():
    made = small.network(heads=("linear", "conv", "small-plain"))
    train_exits(made, small.loader(), config=TrainConfig(epochs=2))
    return made


def by_hand(net, x, y):
    """{(p, c): (confidence, quality, logits)} and the full model's, one sample at a time."""
    found, final = {}, []
    for i in range(len(x)):
        answers, full = net.forward_all(x[i : i + 1])
        final.append((full.softmax(1).max(), full.argmax(1) == (full.argmax(1) if y is None else y[i])))
        for exit_, out in answers.items():
            wanted = full.argmax(1) if y is None else y[i]
            found.setdefault(exit_, []).append((out.softmax(1).max(), out.argmax(1) == wanted, out[0]))
    return found, final


@pytest.mark.parametrize("quality", ["labels", "agreement"])
def test_records_equal_a_loop_by_hand(net, quality):
    x, y = small.inputs(count=50, seed=5), small.labels(50, seed=6)
    loader = small.batches(x, y, size=16)
    records = record_outputs(net, loader, quality=quality, keep_logits=True)
    assert records.positions == net.positions == ("input", "blocks.0", "blocks.1")
    assert records.heads == ("linear", "conv", "small-plain")
    assert records.meta == {"quality": quality, "task": "classification", "confidence": "max-probability"}
    found, final = by_hand(net, x, y if quality == "labels" else None)
    assert {tuple(e) for e in np.argwhere(records.exists)} == set(found)
    for (p, c), rows in found.items():
        confidence, right, logits = zip(*rows, strict=True)
        # 1e-6: batches of other sizes round differently
        np.testing.assert_allclose(records.confidence[p, c], confidence, atol=1e-6)
        np.testing.assert_array_equal(records.quality[p, c], torch.cat(right).float())
        np.testing.assert_allclose(records.logits[p, c], torch.stack(logits), atol=1e-5)
    confidence, right = zip(*final, strict=True)
    np.testing.assert_allclose(records.final_confidence, confidence, atol=1e-6)
    np.testing.assert_array_equal(records.final_quality, torch.cat(right).float())
    if quality == "agreement":
        assert (records.final_quality == 1).all()


def test_heads_that_do_not_exist_leave_zeros(net):
    records = record_outputs(net, small.loader(), keep_logits=True)
    assert not records.exists[0].any()
    for array in (records.confidence, records.quality, records.logits):
        assert not array[~records.exists].any()
        assert array.flags.owndata or array.base is not None
    some = small.network(heads=("linear", "conv"), cuts=["stem"])
    assert record_outputs(some, small.loader()).exists.tolist() == [[False, False], [True, True]]
    assert record_outputs(some, small.loader()).logits is None


def test_unlabelled_data_gives_agreement_only(net):
    loader = small.loader(labelled=False)
    assert record_outputs(net, loader, quality="agreement").samples == 96
    with pytest.raises(InputError, match=r"batch 0 .*expected labels, got none; pass quality='agreement'"):
        record_outputs(net, loader)
    with pytest.raises(InputError, match=r"quality: expected 'labels' or 'agreement', got 'truth'"):
        record_outputs(net, loader, quality="truth")


def test_impossible_data_is_refused(net):
    x, y = small.inputs(), small.labels()
    with pytest.raises(InputError, match="the loader yields no samples"):
        record_outputs(net, [])
    with pytest.raises(
        InputError, match=r"batch 0 .*labels: expected 0 to 2 because the model has 3 outputs"
    ):
        record_outputs(net, small.batches(x, y + 5))
    x[40] = math.nan
    with pytest.raises(InputError, match=r"batch 1 of the loader: the model's output is not finite; check"):
        record_outputs(net, small.batches(x, y))


def test_a_head_that_gives_nan_is_refused_by_name():
    net = small.network(small.Vector, heads=("linear",))
    with torch.no_grad():
        net.head(2, "linear").out.bias[0] = math.nan
    with pytest.raises(
        InputError, match=r"head 'linear' at 'b' gives an answer that is not finite; train it"
    ):
        record_outputs(net, small.loader(small.Vector))


def test_heads_are_recorded_in_eval_mode_and_left_in_theirs(net):
    wanted = record_outputs(net, small.loader())
    before = small.weights(net)
    net.train()
    try:
        got = record_outputs(net, small.loader())
        assert all(part.training for part in net.modules())
    finally:
        net.eval()
    np.testing.assert_array_equal(got.confidence, wanted.confidence)
    assert small.same(before, small.weights(net))


def test_a_bfloat16_model_is_recorded_in_float32():
    net = offramp.attach_exits(small.model().bfloat16(), small.inputs()[:2].bfloat16())
    x, y = small.inputs().bfloat16(), small.labels()
    records = record_outputs(net, small.batches(x, y), keep_logits=True)
    out = net.forward_all(x[:32])[0][1, 0]
    np.testing.assert_array_equal(records.logits[1, 0, :32], out.float())


def test_keyword_models(net):
    tokens = small.network(small.Tokens)
    records = record_outputs(tokens, small.loader(small.Tokens))
    x, y = small.inputs(small.Tokens), small.labels()
    np.testing.assert_array_equal(records.final_quality, tokens.backbone(**x)["logits"].argmax(1) == y)
    labelled = [{**x, "labels": y} for x, y in small.loader(small.Tokens)]
    np.testing.assert_array_equal(record_outputs(tokens, labelled).quality, records.quality)


def counted(monkeypatch):
    calls = []
    answers = offramp.ExitNetwork.answers
    monkeypatch.setattr(offramp.ExitNetwork, "answers", lambda s, v: calls.append(1) or answers(s, v))
    return calls


def test_an_interrupted_recording_goes_on(net, tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "_COMMIT_EVERY", 0.0)
    calls = counted(monkeypatch)

    def stopped():
        yield from small.loader()[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_outputs(net, stopped(), work_dir=tmp_path)
    assert len(calls) == 2
    resumed = record_outputs(net, small.loader(), work_dir=tmp_path)
    assert len(calls) == 3
    plain = record_outputs(net, small.loader())
    resumed.save(tmp_path / "a")
    plain.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_one_work_dir_serves_several_splits_and_networks(net, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    for _ in range(2):
        for seed in (1, 5):
            got = record_outputs(net, small.loader(seed=seed), work_dir=tmp_path)
            right = net.backbone(small.inputs(seed=seed)).argmax(1) == small.labels(seed=seed + 1)
            np.testing.assert_array_equal(got.final_quality, right)
    assert len(calls) == 6
    record_outputs(net, small.loader(), work_dir=tmp_path, keep_logits=True)
    record_outputs(net, small.loader(), work_dir=tmp_path, quality="agreement")
    assert len(calls) == 12
    head = net.head(1, "linear")
    head.out.bias.data += 1
    record_outputs(net, small.loader(), work_dir=tmp_path)
    head.out.bias.data -= 1
    assert len(calls) == 15
