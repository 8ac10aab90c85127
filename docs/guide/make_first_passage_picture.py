"""Draws first_passage.svg for docs/guide/trust.md: how far along the dial a drop allows one to go.

    python docs/guide/make_first_passage_picture.py

Left, the losses on samples held out, added up along a dial, and their running maximum; right, the drop that
each saving is promised for, beside the mean drop. The dial is that of generated records (500 samples).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

sys.path[:0] = [str(Path(__file__).parents[2])]

from bench.search.recordsets import generated
from offramp.report.figures import CHOSEN, INK, LINE, PALETTE, QUIET
from offramp.solver.cross_fit import Folds, judged_settings
from offramp.solver.problem import Problem
from offramp.solver.pruning import SELECTION_BIAS
from offramp.solver.search import DEFAULT_TRADEOFFS, dial_tradeoffs
from offramp.solver.solve import SearchPlan

SAMPLES, SEED, ASK = 500, 5, 0.01
STYLE = {
    "svg.hashsalt": "first-passage",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    **PALETTE,
}


def main() -> None:
    """Write the picture beside this file."""
    records, costs = generated(SEED, SAMPLES)
    plan = SearchPlan("exact", SELECTION_BIAS / SAMPLES, len(records.positions), True)
    problem = Problem.of(records, costs)
    folds = Folds(records, problem.canonical(), 0)
    grid = dial_tradeoffs(DEFAULT_TRADEOFFS)
    _, common = judged_settings(problem, costs, grid, plan, folds, 0.01)
    saving = np.array([1 - each.cost for each in common.rows])
    losses = np.array([each.mean * SAMPLES for each in common.rows])
    promised = np.array([each.promised for each in common.rows])
    top = np.maximum.accumulate(losses)
    allowed = (SAMPLES + 1) * ASK
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.9), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2)
        end = float(saving[top <= 14].max())
        left.plot(100 * saving, losses, color=QUIET, linewidth=1, label="losses held out, added up")
        left.plot(100 * saving, top, color=LINE, linewidth=1.8, label="their running maximum")
        for j in range(1, 13):
            reached = 100 * saving[np.searchsorted(top, j - 1 + 1e-9, side="right") - 1]
            left.plot([reached], [j - 1], "o", color=LINE, markersize=4)
        left.axhline(allowed - 1, color=CHOSEN, linewidth=1, linestyle=(0, (4, 3)))
        words = f"{100 * ASK:g} point of {SAMPLES} samples: {allowed:.2g} losses, less one"
        left.text(1, allowed - 0.8, words, color=CHOSEN, fontsize=9.5, va="bottom")
        left.set(title="From the full model down", ylabel="net losses", ylim=(-3, 13), xlim=(0, 100 * end))
        left.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.93))
        right.plot(100 * saving, 100 * losses / SAMPLES, color=QUIET, linewidth=1, label="mean drop held out")
        right.plot(100 * saving, 100 * promised, color=LINE, linewidth=1.8, label="promised drop")
        far = np.flatnonzero(promised <= ASK)[-1]
        right.plot([100 * saving[far]], [100 * promised[far]], "o", color=CHOSEN, markersize=7)
        told = f"at(max_drop={ASK:g})\nsaves {saving[far]:.0%}"
        place = (100 * saving[far] - 4, 100 * ASK + 0.35)
        right.text(*place, told, color=CHOSEN, ha="right", fontsize=9.5)
        right.set(title="What each saving is promised for", ylabel="drop (points)")
        right.set(ylim=(-0.5, 2.8), xlim=(0, 100 * end))
        right.legend(frameon=False, loc="upper left")
        for axes in (left, right):
            axes.set_xlabel("compute saved (%)")
        figure.get_layout_engine().set(w_pad=0.12)
        FigureCanvasSVG(figure)
        figure.savefig(
            Path(__file__).with_name("first_passage.svg"), metadata={"Date": None, "Creator": None}
        )


if __name__ == "__main__":
    main()
