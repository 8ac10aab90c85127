"""The trade-off for people to look at: an HTML page, SVG figures, tables for the terminal."""

from offramp.report.figures import require_matplotlib
from offramp.report.html import write_report
from offramp.report.tables import frontier_rows, frontier_table, shares

__all__ = ["frontier_rows", "frontier_table", "require_matplotlib", "shares", "write_report"]
