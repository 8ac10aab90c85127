"""Classifiers of transformers that are no plain encoders, all the way to a frontier, at several lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import offramp

transformers = pytest.importorskip("transformers", reason="text models need the extra text")

DECODER = {
    "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32, "num_labels": 3,
    "pad_token_id": 0,
}  # fmt: skip
ENCODER = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
END = 1


def llama() -> nn.Module:
    return transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**DECODER))  # type: ignore[no-any-return]


def qwen2() -> nn.Module:
    return transformers.Qwen2ForSequenceClassification(transformers.Qwen2Config(**DECODER))  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=100, n_embd=16, n_layer=3, n_head=2, n_positions=32, num_labels=3, pad_token_id=0
    )
    return transformers.GPT2ForSequenceClassification(config)  # type: ignore[no-any-return]


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, num_labels=3, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=END,
    )  # fmt: skip
    return transformers.T5ForSequenceClassification(config)  # type: ignore[no-any-return]


def bart() -> nn.Module:
    config = transformers.BartConfig(
        vocab_size=100, d_model=16, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
        num_labels=3, eos_token_id=END, pad_token_id=0, decoder_start_token_id=END,
    )  # fmt: skip
    return transformers.BartForSequenceClassification(config)  # type: ignore[no-any-return]


def mpnet() -> nn.Module:
    return transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**ENCODER))  # type: ignore[no-any-return]


def reranker() -> nn.Module:
    config = transformers.BertConfig(**{**ENCODER, "num_labels": 1})
    return transformers.BertForSequenceClassification(config)  # type: ignore[no-any-return]


MODELS = {
    "Llama": llama,
    "Qwen2": qwen2,
    "GPT-2": gpt2,
    "T5": t5,
    "BART": bart,
    "MPNet": mpnet,
    "reranker": reranker,
}


def texts(count: int, longest: int = 10, seed: int = 0) -> dict[str, Tensor]:
    """Ids that end with one token of their own, padded, and the mask."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, longest + 1, (count, 1), generator=random)
    mask = (torch.arange(longest) < lengths).long()
    ids = torch.where(mask > 0, torch.randint(5, 100, (count, longest), generator=random), 0)
    return {"input_ids": ids.scatter_(1, lengths - 1, END), "attention_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_from_the_model_to_a_frontier(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    options: dict[str, Any] = {"task": "binary"} if name == "reranker" else {}
    net = offramp.attach_exits(model, texts(2), heads=("tokens",), **options)
    assert len(net.positions) > 2
    loaders = [[texts(24, seed=seed)] for seed in (1, 2)]
    offramp.train_exits(net, loaders[0], config=offramp.TrainConfig(epochs=2, batch_size=8), progress=False)
    records = offramp.record_outputs(net, loaders[1], quality="agreement", progress=False)
    costs = offramp.measure_cost(net)
    assert 0 < costs.backbone[1] < costs.full
    offramp.search(records, costs)
    confidence = float(records.confidence[1, 0].mean())
    leave = offramp.ExitConfig((offramp.ExitChoice(net.positions[1], "tokens", confidence),))
    full, some = offramp.Engine(net), offramp.Engine(net, leave)
    batch = texts(9, seed=3)
    whole = some(batch)
    assert 0 < (whole.position == 1).sum() < 9
    for i in range(9):
        length = int(batch["attention_mask"][i].sum())
        short = {key: value[i : i + 1, :length] for key, value in batch.items()}
        with torch.no_grad():
            assert torch.equal(full(short).outputs, model(**short).logits)
        alone = some(short)
        assert alone.position[0] == whole.position[i]
        torch.testing.assert_close(alone.outputs[0], whole.outputs[i], rtol=1e-4, atol=1e-5)
