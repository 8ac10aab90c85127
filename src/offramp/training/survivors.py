"""Which samples reach an exit: what its head should be good at.

Samples that early exits are confident of leave early, so a later head meets the others (arXiv 2509.08318,
CalexNet). The loss of a head weighs sample n by

    1 - s + s * reach[n] / mean(reach)

    by_rank       no configuration is known yet: if each exit before let go a random share of the samples, the
                  most confident first, a sample would pass it with the probability of its rank
    by_frontier   the share of a frontier's configurations under which the sample gets there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from offramp.core import ExitConfig, ResolvedConfig, resolve
from offramp.network import ExitIndex, ExitNetwork


def weights(reach: Mapping[ExitIndex, Tensor], share: float) -> dict[ExitIndex, Tensor]:
    """Weights (N,) of mean 1 for each exit, from ``reach`` (N,) of at least 0; ``share`` is s, 0 to 1.

    >>> weights({(1, 0): torch.tensor([0.0, 1.0])}, 0.5)[1, 0].tolist()
    [0.5, 1.5]
    """
    found = {}
    for exit_, values in reach.items():
        mean = values.mean()
        even = torch.ones_like(values)  # also where nothing is known to get there
        found[exit_] = (1 - share) * even + share * (values / mean if mean > 0 else even)
    return found


def by_rank(confidence: Mapping[ExitIndex, Tensor]) -> dict[ExitIndex, Tensor]:
    """How likely samples are to pass all exits before: (N,) in [0, 1] for each, from confidences (N,).

    It is the share of samples that are more confident, mean over the exits before; 1 at the first position.

    >>> by_rank({(1, 0): torch.tensor([0.9, 0.5]), (2, 0): torch.tensor([0.0, 0.0])})[2, 0].tolist()
    [0.25, 0.75]
    """
    ranks = {exit_: _rank(values.float()) for exit_, values in sorted(confidence.items())}
    found = {}
    for exit_, values in confidence.items():
        before = [rank for (position, _), rank in ranks.items() if position < exit_[0]]
        found[exit_] = sum(before, torch.zeros(())) / len(before) if before else torch.ones(len(values))
    return found


def _rank(values: Tensor) -> Tensor:
    """Share of samples more confident than each, half of itself counted; equal ones share their mean."""
    values = torch.nan_to_num(values, nan=-torch.inf, neginf=-torch.inf)
    order = values.sort().values
    below = torch.searchsorted(order, values)
    upto = torch.searchsorted(order, values, right=True)
    return 1 - (below + upto).float() / (2 * len(values))


def by_frontier(
    net: ExitNetwork, configs: Sequence[ExitConfig], confidence: Mapping[ExitIndex, Tensor]
) -> dict[ExitIndex, Tensor]:
    """Share (N,) of a frontier's configurations under which a sample reaches each exit.

    Only configurations that enable an exit count for it, and all where none does. ``confidence`` (N,) is of
    every exit of the network. ``InputError`` where a configuration is of another network.
    """
    plans = [resolve(net.positions, net.head_names, net.exists, config) for config in configs]
    found = {}
    for exit_, values in confidence.items():
        using = [plan for plan in plans if exit_ in {(at, head) for at, head, _ in plan}] or plans
        stays = (_stays(plan, exit_[0], confidence, len(values)) for plan in using)
        found[exit_] = sum(stays, torch.zeros(len(values))) / max(len(using), 1)
    return found


def _stays(
    plan: ResolvedConfig, position: int, confidence: Mapping[ExitIndex, Tensor], samples: int
) -> Tensor:
    """(N,) 1.0 for samples that no exit before ``position`` lets go."""
    stays = torch.ones(samples, dtype=torch.bool)
    for at, head, threshold in plan:
        if at < position:
            values = confidence[at, head]
            stays &= ~((values > float(threshold)) & values.isfinite())
    return stays.float()
