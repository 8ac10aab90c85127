"""The trade-off for people to look at: an HTML page, SVG figures, tables for the terminal.

The package can be called, as ``write_report``: offramp.report("report.html", frontier, records, costs).
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from offramp.report.doubts import Doubt, doubt_about
from offramp.report.figures import require_matplotlib
from offramp.report.html import write_report
from offramp.report.page import amount
from offramp.report.tables import LEGEND, frontier_rows, frontier_table, shares
from offramp.report.terminal import NARROWEST, dial_plot, dial_rows, dial_table

__all__ = [
    "LEGEND", "NARROWEST", "Doubt", "amount", "dial_plot", "dial_rows", "dial_table", "doubt_about",
    "frontier_rows", "frontier_table", "require_matplotlib", "shares", "write_report",
]  # fmt: skip


class _Callable(ModuleType):
    """A package that is called like what people want of it."""

    def __call__(self, *arguments: Any, **options: Any) -> Path:
        """``write_report``."""
        return write_report(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
