"""The trade-off for people to look at: an HTML page, SVG figures, tables for the terminal."""

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
