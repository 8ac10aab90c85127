"""How much work a search does: every budget in one place, with the benchmark that its value comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Budgets of the search. P positions, C heads, N samples; an objective is one trade-off."""

    # B * C * N worked on at once: 512 KiB stays in a core's second-level cache (bench/search --speed)
    cells: int = 1 << 16
    sweeps: int = 100  # back and forth over the positions; each lowers J, so this is only a bound
    grid: int = 200  # common thresholds tried where only some exits are allowed (bench/search compare)
    enumerated: int = 4096  # configurations enumerated on tiny problems, all positions but one
    enumerated_cells: int = 1 << 20  # the same times C * N
    rounds: int = 20  # of descending from the best candidates; two or three are usual
    escape_cells: int = 100_000_000  # moves tried * P * C * N, about three seconds (bench/search --speed)
    objective_cells: int = 20_000_000  # the same for each objective
    brief_cells: int = 2_000_000  # the same for each objective of the coarse level
    # samples of the coarse level; up to twice as many are searched on one level (bench/search --scaling)
    coarse_samples: int = 4096
    coarse_objectives: int = 40  # objectives searched on the coarse level (bench/search --scaling)
    # objectives for which every line is tried on all samples; what they find serves their neighbours
    full_objectives: int = 40  # (bench/search --scaling)
    own_objectives: int = 192  # objectives for which the lines of their own exits are tried on all samples
    # objectives * P * C * N up to which the reference methods run on all samples too
    reference_cells: int = 5_000_000
    resamples: int = 5  # bootstrap resamples that thresholds are averaged over (bench/honesty)
    resample_sweeps: int = 1  # sweeps on each, from the optimum on all samples (bench/honesty)
    # losses up to which one common threshold is the dial to trust; of more samples proportionally fewer
    common_losses: float = 8.0  # (bench/honesty)
    common_samples: int = 1000
    least_losses: float = 2.0  # below that it is not worth finding
    folds: int = 5  # that hold samples out
    dial_objectives: int = 26  # trade-offs that a dial is found from (bench/honesty)
    window: float = 0.25  # of a step of the frontier: how far below a budget the best quality is looked for
    stride: int = 4  # budgets between which a walk along the frontier does not turn
    passes: int = 4  # what is found between two configurations is walked from again, where gaps are left


EFFORT = Effort()
"""What every search uses."""
