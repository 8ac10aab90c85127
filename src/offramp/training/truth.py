"""What outputs are compared with: labels, or the full model's own outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import InputError
from offramp.network import ExitNetwork


@dataclass(frozen=True)
class Truth:
    """The full model's outputs (n, ...), labels (n, ...) or None to compare with those, the mask (n, L)."""

    answers: Tensor
    labels: Tensor | None
    mask: Tensor | None

    def quality(self, net: ExitNetwork, outputs: Tensor) -> Tensor:
        """(n,) in [0, 1]."""
        if self.labels is None:
            return net.task.agreement(outputs, self.answers, self.mask)
        return net.task.quality(outputs, self.labels)

    def counted(self, net: ExitNetwork) -> Tensor | None:
        """(n,) which samples have something to be judged by; None where all do."""
        return None if self.labels is None else net.task.counted(self.labels)

    def rows(self, net: ExitNetwork, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (m, M) and quality (m,): one row per sample, or per token that counts."""
        if not net.task.per_token:
            counted, quality = self.counted(net), self.quality(net, outputs)
            return (outputs, quality) if counted is None else (outputs[counted], quality[counted])
        one = outputs.flatten(0, 1).unsqueeze(1)  # each token a sample of one token
        counts = torch.ones(outputs.shape[:2], dtype=torch.bool) if self.mask is None else self.mask
        if self.labels is None:
            quality = net.task.agreement(one, self.answers.flatten(0, 1).unsqueeze(1))
        else:
            quality = net.task.quality(one, self.labels.flatten().unsqueeze(1))
            counts = counts & (self.labels >= 0)  # tokens that are not to be judged have labels below
        return one.squeeze(1)[counts.flatten()], quality[counts.flatten()]


def check_quality(where: str, quality: str) -> None:
    """Refuse another quality than "labels" and "agreement"; ``where`` opens the message."""
    if quality not in ("labels", "agreement"):
        raise InputError(f"{where}: expected 'labels' or 'agreement', got {quality!r}")


def checked_labels(net: ExitNetwork, labels: Tensor, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Labels (B, ...) without padding; ``InputError`` where they do not fit the outputs (B, ...)."""
    labels = net.task.real_labels(labels, mask)
    net.task.check_labels(labels, outputs)
    return labels


def batch_truth(
    net: ExitNetwork, quality: str, labels: Tensor | None, answers: Tensor, mask: Tensor | None
) -> Truth:
    """What a batch's outputs are compared with; ``InputError`` where labels are needed and there are none."""
    if quality == "agreement":
        return Truth(answers, None, mask)
    if labels is None:
        raise InputError(
            "expected labels, got none; pass quality='agreement' to compare with the full model instead"
        )
    return Truth(answers, checked_labels(net, labels, answers, mask), mask)
