"""Fine-tune MiniLM as a classifier of e-mails or sentences, and its first layers as smaller rivals.

AdamW, a tenth of warm-up and a linear decay, bf16 autocast, word embeddings frozen; batches of texts of
similar length. Every depth is trained with the same recipe: the shallower ones are fair rivals of the
deepest with exits.

    python bench/text backbones --data DIR --out DIR --kind spam [--depth 6 4 2]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from bench.shared import command
from bench.shared.backbones import fit
from bench.text.encoder import (
    DEPTH,
    Encoded,
    accuracy,
    backbone_folder,
    copy_tokenizer,
    load_data,
    new_classifier,
)

BATCH, PEAK, HEAD_PEAK = {"spam": 16, "sentences": 32}, 1e-4, 1e-3
POOLED = 8  # batches that are sorted by length together


def mini_batches(data: Encoded, epochs: int, batch: int) -> Iterator[Encoded]:
    """Shuffled batches of every epoch; a last incomplete batch is left out."""
    lengths = data.mask.sum(1)
    for _ in range(epochs):
        order = torch.randperm(len(data))
        sorted_pools = [pool[lengths[pool].argsort()] for pool in order.split(POOLED * batch)]
        batches = torch.cat(sorted_pools)[: len(data) // batch * batch].split(batch)
        for i in torch.randperm(len(batches)).tolist():
            yield data.rows(batches[i]).trimmed()


def train(
    kind: str, encoder: Path, data: Encoded, *, depth: int, epochs: int, seed: int, limit: int | None = None
) -> nn.Module:
    """One classifier.

    Args:
        kind: "spam" or "sentences".
        encoder: folder of the pretrained encoder.
        data: to train on.
        depth: layers that are kept.
        epochs: passes over the data.
        seed: of the new weights, order and dropout.
        limit: stop after so many steps.
    """
    torch.manual_seed(seed)
    model = new_classifier(encoder, int(data.labels.max()) + 1, depth).train()
    model.bert.embeddings.word_embeddings.requires_grad_(False)
    new = list(model.classifier.parameters())
    old = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("classifier")]
    groups = [{"params": old, "lr": PEAK}, {"params": new, "lr": HEAD_PEAK}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    batch = BATCH[kind]
    steps = epochs * (len(data) // batch)
    warm = max(1, steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    return fit(
        model,
        ((samples.inputs, samples.labels) for samples in mini_batches(data, epochs, batch)),
        optimiser,
        rate,
        steps=min(steps, limit or steps),
        name=f"{kind}-{depth}",
        scores=lambda inputs: model(**inputs).logits,
        clip=1.0,
        every=25,
    )


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that the part prepare wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=tuple(BATCH), required=True)
    parser.add_argument("--depth", type=int, nargs="+", default=[DEPTH])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, help="train on so many of them")
    parser.add_argument("--limit", type=int, help="stop after so many steps: a smoke test")
    parser.add_argument("--seed", type=int, default=0)
    command.add_threads(parser)
    arguments = parser.parse_args()
    data = load_data(arguments.data, arguments.kind)
    learn = data["train"].rows(slice(arguments.samples))
    for depth in arguments.depth:
        model = train(
            arguments.kind, arguments.data / "encoder", learn,
            depth=depth, epochs=arguments.epochs, seed=arguments.seed, limit=arguments.limit,
        )  # fmt: skip
        path = backbone_folder(arguments.out, arguments.kind, depth)
        model.save_pretrained(path)
        copy_tokenizer(arguments.data / "encoder", path)
        print(f"{path.name}: {accuracy(model, data['search']):.4f} on the search split, wrote {path}")
