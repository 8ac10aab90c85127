"""Which samples reach an exit: what its head should be good at.

Samples that are sure early leave early, so a later head meets the others (arXiv 2509.08318, CalexNet). The
loss of a head weighs sample n by

    1 - s + s * reach[n] / mean(reach)

    by_rank       no configuration is known yet: if each exit before let go a random share of the samples, the
                  surest first, a sample would pass it with the probability of its rank
    by_frontier   the share of a frontier's configurations under which the sample gets there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from offramp.core import ExitConfig, ResolvedConfig, resolve
from offramp.network import ExitIndex, ExitNetwork


def weights(reach: Mapping[ExitIndex, Tensor], share: float) -> dict[ExitIndex, Tensor]:
    """Weights of mean 1 for each exit.

    Args:
        reach: (N,) of at least 0, for each exit.
        share: s, 0 to 1; 0 gives ones.

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
    """How likely samples are to pass all exits before, by the mean rank of their confidences there.

    Args:
        confidence: (N,) of each exit; of those at one position, all count alike.

    Returns:
        (N,) in [0, 1] for each exit: the share of samples that are surer, mean over the exits before; 1 at
        the first position.

    >>> by_rank({(1, 0): torch.tensor([0.9, 0.5]), (2, 0): torch.tensor([0.0, 0.0])})[2, 0].tolist()
    [0.25, 0.75]
    """
    found: dict[ExitIndex, Tensor] = {}
    total, count, position = torch.zeros(()), 0, -1
    ranks: list[Tensor] = []  # of the position under way, not before it
    for exit_ in sorted(confidence):
        if exit_[0] != position:
            total, count = total + sum(ranks, torch.zeros(())), count + len(ranks)
            position, ranks = exit_[0], []
        values = confidence[exit_].float()
        found[exit_] = total / count if count else torch.ones_like(values)
        ranks.append(_surer(values))
    return found


def _surer(values: Tensor) -> Tensor:
    """Share of samples that are surer than each, half of itself counted; equal ones share their mean."""
    values = torch.nan_to_num(values, nan=-torch.inf, neginf=-torch.inf)
    order = values.sort().values
    below = torch.searchsorted(order, values)
    upto = torch.searchsorted(order, values, right=True)
    return 1 - (below + upto).float() / (2 * len(values))


def by_frontier(
    net: ExitNetwork,
    configs: Sequence[ExitConfig],
    confidence: Mapping[ExitIndex, Tensor],
) -> dict[ExitIndex, Tensor]:
    """Share of the configurations under which a sample reaches an exit.

    Args:
        net: which positions and heads there are.
        configs: of a frontier; of those, the ones that enable an exit count for it, and all where none does.
        confidence: (N,) for each exit of the network, also of those that are not trained.

    Returns:
        (N,) in [0, 1] for each exit.

    Raises:
        InputError: a configuration is of another network.
    """
    plans = [resolve(net.positions, net.head_names, net.exists, config) for config in configs]
    found = {}
    for exit_, values in confidence.items():
        using = [plan for plan in plans if exit_ in {(at, head) for at, head, _ in plan}] or plans
        total = torch.zeros(len(values))
        for plan in using:
            total += _stays(plan, exit_[0], confidence, len(values))
        found[exit_] = total / max(len(using), 1)
    return found


def _stays(
    plan: ResolvedConfig, position: int, confidence: Mapping[ExitIndex, Tensor], samples: int
) -> Tensor:
    """(N,) 1.0 for samples that no exit before ``position`` lets go."""
    stays = torch.ones(samples, dtype=torch.bool)
    for at, head, threshold in plan:
        if at < position:
            confidence_fn = confidence[at, head]
            stays &= ~((confidence_fn > float(threshold)) & confidence_fn.isfinite())
    return stays.float()
