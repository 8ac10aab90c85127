"""How much work a search does: every budget in one place, with the benchmark that its value comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Budgets of the search. P positions, C heads, N samples; an objective is one trade-off to minimise for.

    Args:
        cells: B * C * N numbers worked on at once: 512 KiB stays in a core's second-level cache
            (``bench/search --speed``).
        sweeps: back and forth over the positions; each lowers J, so this is only a bound.
        grid: common thresholds tried where only some exits are allowed (``bench/search compare``).
        enumerated: configurations enumerated on tiny problems, all positions but one.
        enumerated_cells: the same times C * N.
        rounds: of descending from the best candidates; two or three are usual.
        escape_cells: moves tried * P * C * N, about three seconds (``bench/search --speed``).
        objective_cells: the same for each objective.
        brief_cells: the same for each objective of the coarse level.
        coarse_samples: samples of the coarse level; with no more than twice as many there is but one level
            (``bench/search --scaling``).
        coarse_objectives: objectives searched on the coarse level (``bench/search --scaling``).
        full_objectives: objectives for which every line is tried on all samples; what they find serves their
            neighbours (``bench/search --scaling``).
        own_objectives: objectives for which the lines of their own exits are tried on all samples.
        reference_cells: objectives * P * C * N up to which the reference methods run on all samples too.
        resamples: bootstrap resamples that thresholds are averaged over (``bench/search compare``).
        resample_sweeps: sweeps on each, from the optimum on all samples.
        folds: of cross-validation.
        fold_objectives: objectives compared on held-out folds (``bench/search compare``).
        repeats: divisions into folds at most; one alone moves mean J by 0.003 at N = 500, more than the
            choices differ by (``bench/search compare``).
        repeated_samples: N up to which the division into folds is repeated.
        window: of a step of the frontier: how far below a budget the best quality is looked for.
        stride: budgets between which a walk along the frontier does not turn.
        passes: what is found between two configurations is walked from again, where gaps are left.
    """

    cells: int = 1 << 16
    sweeps: int = 100
    grid: int = 200
    enumerated: int = 4096
    enumerated_cells: int = 1 << 20
    rounds: int = 20
    escape_cells: int = 100_000_000
    objective_cells: int = 20_000_000
    brief_cells: int = 2_000_000
    coarse_samples: int = 4096
    coarse_objectives: int = 40
    full_objectives: int = 40
    own_objectives: int = 192
    reference_cells: int = 5_000_000
    resamples: int = 10
    resample_sweeps: int = 2
    folds: int = 5
    fold_objectives: int = 9
    repeats: int = 3
    repeated_samples: int = 2000
    window: float = 0.25
    stride: int = 4
    passes: int = 4


EFFORT = Effort()
"""What every search uses."""
