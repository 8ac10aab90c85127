"""The report of figures that are promised for new samples, and of such that are in-sample."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dials import dial_costs, dial_records, honest_frontier, in_sample_frontier
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate
from offramp.core.frontier import Frontier
from offramp.report import figures
from offramp.report.html import render_report
from offramp.report.kept import WANTED
from offramp.report.page import Page
from offramp.report.tables import frontier_rows, frontier_table

SEARCH, REPORT, COSTS = dial_records(2000, 0), dial_records(2500, 1), dial_costs()
HONEST, IN_SAMPLE = honest_frontier(SEARCH, COSTS), in_sample_frontier(SEARCH, COSTS)


@pytest.fixture(scope="module")
def page():
    return render_report(HONEST, REPORT, COSTS)


def table(page, kind):
    """Rows of the table of this class, cells as text, without the heads."""
    text = re.search(rf"<table class={kind}>(.*?)</table>", page, re.S)[1]
    body = text[text.index("</thead>") :]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in body.split("<tr")[1:]]


def number(text):
    return float(text.replace("\u2212", "-").rstrip("%*"))


class Reader(HTMLParser):
    """What a screen reader needs of tables: captions, scopes; and of pictures: role and label."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.pictures, self.caption = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self.tables.append({"caption": "", "heads": [], "scopes": []})
        elif tag == "th":
            self.tables[-1]["scopes"].append(attributes.get("scope"))
        elif tag == "svg":
            self.pictures.append((attributes.get("role"), attributes.get("aria-label", "")))
        self.caption = tag == "caption"

    def handle_data(self, data):
        if self.caption:
            self.tables[-1]["caption"] += data

    def handle_endtag(self, tag):
        self.caption = self.caption and tag != "caption"


@pytest.mark.parametrize("frontier", [HONEST, IN_SAMPLE], ids=["promised", "in-sample"])
def test_tables_and_pictures_can_be_read_aloud(frontier):
    page = render_report(frontier, REPORT, COSTS)
    reader = Reader(page)
    assert [each["caption"] for each in reader.tables] == [
        "Drops asked for, and what was kept of them",
        "All configurations",
        "Enabled exits",
    ]
    for each in reader.tables:
        assert set(each["scopes"]) <= {"col", "row", "colgroup", "rowgroup"}
        assert {"col"} < set(each["scopes"])
    assert len(reader.pictures) == 4
    assert {role for role, _ in reader.pictures} == {"img"}
    labels = [label for _, label in reader.pictures]
    assert len(set(labels)) == 4
    assert any(re.fullmatch(r"Accuracy against cost: \d+ configurations from .*", each) for each in labels)
    assert any("at most the drop asked for at" in each for each in labels)
    regions = re.findall(r"role=region aria-labelledby=([\w-]+)", page)
    assert len(regions) == 3
    assert all(f"<caption id={each}>" in page for each in regions)


def test_what_is_promised_stands_beside_what_was_measured(page):
    rows = table(page, "figures")
    assert len(rows) == len(HONEST) + 1  # and the full model
    for row, config in zip(rows, HONEST, strict=False):
        own = config.expected
        assert number(row[4]) == pytest.approx(
            100 * (REPORT.final_quality.mean() - evaluate(REPORT, COSTS, config).quality), abs=0.0051
        )
        assert number(row[9]) == pytest.approx(100 * own.quality, abs=0.0051)
        assert number(row[10]) == pytest.approx(100 * own.drop, abs=0.0051)
        assert [number(end) for end in row[11].split(" to ")] == pytest.approx(
            [100 * end for end in own.drop_interval], abs=0.0051
        )
    assert len({len(row) for row in rows}) == 1
    assert "Promised for new samples, by the search" in page
    assert "in-sample" not in page
    assert "promised, with 95% interval" in page
    assert "less the drop promised for new samples" in page
    assert "promised for new samples were cross-fitted on those" in page.replace("\n", " ")


def test_the_headline_says_what_was_promised(page):
    chosen = HONEST.at(max_drop=0.005)
    drop = f"{-100 * chosen.expected.drop:+.2f}".replace("-", "\u2212")
    assert f"<b>{drop} points</b> <span>promised for new samples; 95% interval" in page
    assert f"This is configuration {list(HONEST).index(chosen)}: the cheapest one that is promised" in page


def test_a_headline_where_none_is_promised_to_stay_within_half_a_point():
    page = render_report(Frontier(HONEST[:2]), REPORT, COSTS)
    assert "configuration 1: the best one, where none is promised to stay within 0.5 points" in page


def test_in_sample_figures_are_called_so():
    page = render_report(IN_SAMPLE, REPORT, COSTS)
    for said in (
        "On the search split (in-sample)",
        "search samples (in-sample)",
        "less the drop on the search samples (in-sample)",
        "the figures called in-sample come from those and are optimistic",
        "(in-sample: optimistic)",
        "in-sample drop",
    ):
        assert said in page.replace("\n", " ")
    assert "promised" not in page


@pytest.mark.parametrize("frontier", [HONEST, IN_SAMPLE], ids=["promised", "in-sample"])
def test_asked_against_kept_is_what_at_picks(frontier):
    rows = table(render_report(frontier, REPORT, COSTS), "kept")
    assert [number(row[0]) for row in rows] == pytest.approx([100 * wanted for wanted in WANTED])
    for row, wanted in zip(rows, WANTED, strict=True):
        config = frontier.at(max_drop=wanted)
        outcome = evaluate(REPORT, COSTS, config)
        drop = float(REPORT.final_quality.mean(dtype=float)) - outcome.quality
        low, high = map(number, row[5].split(" to "))
        assert row[1] == str(list(frontier).index(config))
        assert number(row[2]) == pytest.approx(100 * outcome.relative_cost, abs=0.051)
        assert number(row[3]) == pytest.approx(100 * config.expected.drop, abs=0.0051)
        assert number(row[4]) == pytest.approx(100 * drop, abs=0.0051)
        assert (low + high) / 2 == pytest.approx(100 * drop, abs=0.011)
        kept = "yes" if drop <= wanted + 1e-12 else "within the interval" if low <= 100 * wanted else "no"
        assert row[6] == kept


def test_what_was_not_kept_and_what_cannot_be_had():
    worse = dial_records(2500, 1)
    worse.quality[:] = 0.0  # every answer of an exit is wrong
    page = render_report(HONEST, worse, COSTS)
    assert "no" in {row[6] for row in table(page, "kept")}
    page = render_report(Frontier(HONEST[:2]), REPORT, COSTS)
    rows = table(page, "kept")
    assert [row[1] for row in rows] == ["none"] * len(WANTED)
    assert re.search(r"The best configuration loses 1\d\.\d\d as promised\.", page)
    assert "Drop measured against" not in page
    page = render_report(Frontier(IN_SAMPLE[:2]), REPORT, COSTS)
    assert re.search(r"The best configuration loses 1\d\.\d\d in-sample\.", page)


def test_one_sample_and_an_other_cost_table():
    page = render_report(HONEST, REPORT.subset([0]), COSTS)
    assert {row[5] for row in table(page, "kept")} == {"not known"}
    page = render_report(HONEST, REPORT, CostTable(COSTS.backbone / 2, COSTS.heads, "macs"))
    assert "The search used another cost table" in page
    assert "promised, with 95% interval" not in page  # its relative costs are others


def test_the_band_is_moved_to_the_full_model_of_the_report_split(monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "frontier_figure", lambda *given: seen.append(given[-1]) or "")
    render_report(HONEST, REPORT, COSTS)
    (curve,) = seen
    full = 100 * REPORT.final_quality.mean(dtype=float)
    assert curve.quality == pytest.approx([full - 100 * each.expected.drop for each in HONEST])
    low, high = np.transpose([each.expected.drop_interval for each in HONEST])
    assert curve.interval == pytest.approx(np.stack([full - 100 * high, full - 100 * low], axis=1))


def test_the_page_picks_as_the_frontier_does():
    page = Page(HONEST, REPORT, COSTS)
    for wanted in np.linspace(0, 0.1, 23):
        assert page.within(wanted).config is HONEST.at(max_drop=wanted)
    assert page.within(-0.01) is None


def test_terminal_tables_show_the_promise():
    from rich.console import Console

    def printed(frontier):
        console = Console(width=120, no_color=True)
        rows = frontier_rows(frontier, REPORT, COSTS)
        with console.capture() as capture:
            console.print(frontier_table(rows, REPORT, "macs"))
        return rows, capture.get().splitlines()

    rows, lines = printed(HONEST)
    assert lines[0].split()[:6] == ["#", "macs", "quality", "points", "promised", "exits"]
    for row, line in zip(rows, lines[1:-1], strict=False):
        assert row["promised_drop"] == pytest.approx(HONEST[row["index"]].expected.drop)
        assert line.split()[3:5] == [f"{-100 * row['drop']:+.2f}", f"{-100 * row['promised_drop']:+.2f}"]
    rows, lines = printed(IN_SAMPLE)
    assert {row["promised_drop"] for row in rows} == {None}
    assert "promised" not in lines[0]
