"""The report, read as a browser and as a hostile namer would."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import offramp
from offramp.core.certificate import Certificate, Guarantee
from offramp.core.config import ExitChoice, ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import evaluate, expected
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords
from offramp.errors import InputError, MissingExtraError, StorageError
from offramp.report import figures
from offramp.report.html import render_report, write_report

POSITIONS = ("input", *(f"layer{block}.{unit}" for block in (1, 2, 3) for unit in (0, 1, 2)))
HEADS = ("linear", "mlp", "conv")


def synthetic_records(samples, seed=0, positions=POSITIONS, heads=HEADS, missing=()):
    """Records like those of a small ResNet: deeper and bigger heads are better, sure answers mostly right."""
    rng = np.random.default_rng(seed)
    P, C = len(positions), len(heads)
    ease = rng.normal(size=samples)
    depth = np.linspace(-1.1, 1.35, P)[:, None, None] + 0.14 * np.arange(C)[None, :, None]
    ease = ease + 0.25 * rng.normal(size=samples)
    margin = depth + ease + 0.15 * rng.normal(size=(P, C, samples))
    confidence = 1 / (1 + np.exp(-2.2 * margin - 1.2 * rng.normal(size=margin.shape)))
    quality = (margin > 0).astype(float)
    final = ease + 1.66 + 0.1 * rng.normal(size=samples) > 0
    exists = np.ones((P, C), bool)
    exists[0] = False
    for at, head in missing:
        exists[at, head] = False
    return ExitRecords(confidence, quality, final, exists, positions, heads)


def synthetic_costs(positions=POSITIONS, heads=HEADS, unit="macs", full=125.7e6):
    P, C = len(positions), len(heads)
    table = np.outer(np.linspace(1.0, 0.6, P), np.linspace(0.002, 0.02, C)) * full
    table[0] = 0
    return CostTable(np.linspace(0, full, P + 1), table, unit, {"batch_size": 1, "parts": [1, 2]})


def common_thresholds(search, costs, thresholds, head="conv", positions=None):
    """A frontier from one threshold for all positions, with the figures of ``search``."""
    places = positions or search.positions[2::2]
    configs = [ExitConfig()] + [
        ExitConfig([ExitChoice(place, head, t) for place in places], tradeoff=0.5 + 0.5 * t)
        for t in thresholds
    ]
    figured = [ExitConfig(c.choices, c.tradeoff, expected(search, costs, c)) for c in configs]
    return Frontier.of(figured, meta={"method": "same-threshold", "parts": [1]})


def example(thresholds=None, samples=(4000, 5000), unit="macs"):
    thresholds = 1 - np.geomspace(0.02, 0.6, 13) if thresholds is None else thresholds
    search, report = (synthetic_records(n, seed, missing=[(3, 1)]) for seed, n in enumerate(samples))
    costs = synthetic_costs(unit=unit, full=125.7e6 if unit == "macs" else 0.0123)
    return common_thresholds(search, costs, thresholds), report, costs


class Page(HTMLParser):
    """What a browser would build: elements with attributes, text by element, all ids and references."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.declarations = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def tags(self):
        return {tag for tag, _ in self.elements}

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def text(self, inside="body"):
        return " ".join(" ".join(text for tags, text in self.texts if inside in tags).split())


def rows(page, kind="figures"):
    """Cells of the body rows of the table of this class, as text."""
    table = re.search(rf"<table class={kind}>(.*?)</table>", page, re.S)[1]
    body = "".join(re.findall(r"<tbody>(.*?)</tbody>", table, re.S))
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in body.split("<tr")[1:]]


def figure(page, heading):
    return next(f for f in re.findall(r"<figure.*?</figure>", page, re.S) if heading in f)


def svg_text(page, heading):
    root = ET.fromstring(re.search(r"<svg.*</svg>", figure(page, heading), re.S)[0])
    return [element.text for element in root.iter("text")]


@pytest.fixture(scope="module")
def made():
    return example()


@pytest.fixture(scope="module")
def page(made):
    return render_report(*made, notes={"Model": "ResNet-56"})


def number(text):
    return float(text.replace("\u2212", "-").rstrip("%*"))


def test_the_page_is_self_contained(page):
    parsed = Page(page)
    assert parsed.tags().isdisjoint({"script", "img", "iframe", "object", "embed", "form", "base"})
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert parsed.attributes("src") == []
    links = parsed.attributes("href")
    assert {link[0] for link in links if link != "data:,"} == {"#"}  # only inside the page
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert "url(" not in page.replace("url(#", "")


def test_ids_are_unique_and_references_resolve(page):
    parsed = Page(page)
    ids = parsed.attributes("id")
    assert len(ids) == len(set(ids))
    used = {link[1:] for link in parsed.attributes("href") if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert used
    assert used <= set(ids)


def test_styles_of_a_picture_do_not_reach_the_page(page):
    assert page.count("<style") == 1


def test_same_input_same_bytes_whatever_the_settings_of_the_caller(made, page):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        settings = dict(matplotlib.rcParams)
        assert render_report(*made, notes={"Model": "ResNet-56"}) == page
        assert dict(matplotlib.rcParams) == settings


def test_pyplot_is_not_imported():
    import subprocess

    code = "import sys, test_html as t; t.render_report(*t.example(samples=(50, 50))); "
    code += "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_table_agrees_with_evaluate(made, page):
    frontier, records, costs = made
    table = rows(page)
    assert len(table) == len(frontier)
    for row, config in zip(table, frontier, strict=True):
        outcome = evaluate(records, costs, config)
        assert number(row[2]) == pytest.approx(100 * outcome.relative_cost, abs=0.051)
        assert number(row[3]) == pytest.approx(100 * outcome.quality, abs=0.0051)
        assert number(row[4]) == pytest.approx(
            100 * (records.final_quality.astype(float).mean() - outcome.quality), abs=0.0051
        )
        assert int(row[6]) == len(config.choices)
        assert number(row[7]) == pytest.approx(outcome.position.mean(), abs=0.051)
        assert number(row[8]) == pytest.approx(100 * config.expected.relative_cost, abs=0.051)
        assert number(row[9]) == pytest.approx(100 * config.expected.quality, abs=0.0051)
        assert number(row[10]) == pytest.approx(100 * config.expected.drop, abs=0.0051)
    assert [row[0] for row in table] == [str(at) for at in range(len(frontier))]


def test_the_interval_is_that_of_the_paired_difference(made, page):
    """Against the answers of each sample, walked through one by one."""
    frontier, records, _ = made
    row, config = rows(page)[3], frontier[3]
    lost = []
    for n in range(records.samples):
        answer = records.final_quality[n]
        for choice in config.choices:
            at, head = records.positions.index(choice.position), records.heads.index(choice.head)
            if records.confidence[at, head, n] > np.float32(choice.threshold):
                answer = records.quality[at, head, n]
                break
        lost.append(float(records.final_quality[n]) - float(answer))
    half = 1.96 * np.std(lost, ddof=1) / np.sqrt(len(lost))
    low, high = map(number, row[5].split(" to "))
    assert low == pytest.approx(100 * (np.mean(lost) - half), abs=0.01)
    assert high == pytest.approx(100 * (np.mean(lost) + half), abs=0.01)


def test_the_headline_is_chosen_on_the_search_split_alone(made, page):
    frontier, records, costs = made
    chosen = frontier.at(max_drop=0.005)
    at = list(frontier).index(chosen)
    own, full = evaluate(records, costs, chosen), records.final_quality.astype(float).mean()
    headline = Page(page).text("h1")
    assert headline == (
        f"At {100 * own.relative_cost:.1f}% of the full model\u2019s MACs, this model keeps "
        f"{100 * own.quality:.2f} of its {100 * full:.2f} points of accuracy."
    )
    assert (
        f"This is configuration {at}: the cheapest one that loses at most 0.5 points on the search split"
        in page
    )
    assert f"<tr class=chosen><th scope=row>{at}</th>" in page
    worse = records.subset(
        np.argsort(records.final_quality, kind="stable")[:400]
    )  # other report samples, same choice
    assert f"This is configuration {at}:" in render_report(frontier, worse, costs)


def test_a_headline_where_none_stays_within_half_a_point(made):
    frontier, records, costs = made
    page = render_report(Frontier(frontier[:2]), records, costs)
    assert (
        "configuration 1: the best one on the search split (in-sample), where none stays within 0.5 points"
        in page
    )


def test_a_headline_where_exits_beat_the_full_model(made):
    frontier, records, costs = made
    weak = ExitRecords(
        records.confidence, records.quality, records.final_quality * 0, records.exists, POSITIONS, HEADS
    )
    assert re.search(
        r"<h1>Early exits beat the full model: do the preprocessing and the classes fit it\?</h1>\n<p><b>",
        render_report(frontier, weak, costs),
    )


def test_the_full_model_alone(made):
    frontier, records, costs = made
    page = render_report(Frontier([frontier.full_model]), records, costs)
    assert "No early exit pays here: the rule picks the full model itself (94.30 points of accuracy)." in page
    assert "too few for this interval" not in page  # nothing differs, and nothing could
    assert rows(page)[0][2:8] == ["100.0%", "94.30", "0.00", "0.00 to 0.00", "0", "10.0"]


def test_one_sample(made):
    frontier, records, costs = made
    page = render_report(frontier, records.subset([0]), costs)
    assert {row[5] for row in rows(page)} == {"not known"}
    assert "95% interval not known" in page


def test_few_changed_samples_are_marked(made):
    frontier, records, costs = made
    page = render_report(frontier, records.subset(range(12)), costs)
    assert "too few for this interval" in page
    assert any(row[5].endswith("*") for row in rows(page))


def test_no_samples_and_other_networks_are_refused(made):
    frontier, records, costs = made
    with pytest.raises(InputError, match="at least one sample"):
        render_report(frontier, records.subset(np.zeros(5000, bool)), costs)
    with pytest.raises(InputError, match="measure and record the same network"):
        render_report(frontier, records, CostTable([0, 1], [[0, 0, 0]], "macs"))
    with pytest.raises(InputError, match="unknown head 'conv'"):
        render_report(frontier, synthetic_records(9, heads=("a", "b", "c")), costs)


@pytest.mark.parametrize(
    ("unit", "full", "shown", "spent"),
    [
        ("macs", 125.75e6, "125.8 M MACs", "MACs"),
        ("macs", 12, "12 MACs", "MACs"),
        ("macs", 3e18, "3e+06 T MACs", "MACs"),
        ("seconds", 0.0123, "12.3 ms", "time"),
        ("seconds", 1e-13, "0.0001 ns", "time"),
        ("joules", 1500.0, "1.5 kJ", "energy"),
        ("<b>$ per\n1k</b>", 7.5, "7.5 <b>$ per\ufffd1k</b>", "cost in <b>$ per\ufffd1k</b>"),
    ],
)
def test_units(unit, full, shown, spent):
    search, report = synthetic_records(300), synthetic_records(200, 1)
    costs = synthetic_costs(unit=unit, full=full)
    page = Page(render_report(common_thresholds(search, costs, [0.9]), report, costs))
    assert f"The full model costs {shown}." in page.text()
    assert f"of the full model\u2019s {spent}" in page.text("header")


def test_costs_other_than_those_of_the_search_are_pointed_out(made):
    frontier, records, _ = made
    remark = "The search used another cost table"
    assert remark in render_report(frontier, records, synthetic_costs(unit="seconds", full=0.01))
    assert remark not in render_report(*made)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({}, "accuracy"), ({"meta": {"quality": "agreement"}}, "agreement"), ({"scale": 0.5}, "quality")],
)
def test_quality_is_called_what_it_is(made, changes, name):
    frontier, records, costs = made
    arrays = (records.confidence, records.quality, records.final_quality * changes.pop("scale", 1))
    page = render_report(frontier, ExitRecords(*arrays, records.exists, POSITIONS, HEADS, **changes), costs)
    assert f"<h2>{name.capitalize()} against cost</h2>" in page
    assert f"<b>{name.capitalize()}</b> is the " in page


def test_the_bars_show_every_configuration_up_to_the_limit(made, page):
    labels = [text for text in svg_text(page, "Where samples leave") if "·" in text]
    assert [int(label.split(" ")[0]) for label in labels] == list(range(len(made[0])))
    assert "evenly spread" not in page


def test_many_configurations_are_thinned_in_the_bars_only():
    frontier, records, costs = example(np.linspace(0.3, 0.97, 60), (2000, 1000))
    assert len(frontier) > figures.MAX_BARS
    page = render_report(frontier, records, costs)
    shown = [int(text.split(" ")[0]) for text in svg_text(page, "Where samples leave") if "·" in text]
    assert len(shown) == figures.SELECTED_BARS
    assert (shown[0], shown[-1]) == (0, len(frontier) - 1)
    even = np.linspace(0, len(frontier) - 1, figures.SELECTED_BARS)
    chosen = int(re.search(r"<tr class=chosen><th scope=row>(\d+)</th>", page)[1])
    assert chosen in shown  # in the place of its nearest
    assert sum(abs(at - wanted) > 0.5 for at, wanted in zip(shown, even, strict=True)) <= 1
    assert f"16 of {len(frontier)} are shown, evenly spread; the table has all." in page
    assert len(rows(page)) == len(frontier)


def test_the_legend_of_the_bars_has_exactly_the_positions_where_samples_leave(page):
    legend = re.findall(r"</i>(.*?)</li>", figure(page, "Where samples leave"))
    assert legend == ["layer1.1", "layer2.0", "layer2.2", "layer3.1", "backbone&#x27;s own output"]


def test_single_exits_outside_the_window_are_counted(page):
    assert re.search(r"\d+ of the 26 lie outside this window", figure(page, "Accuracy against cost"))


def test_no_exit_is_hidden_when_all_fit():
    records = synthetic_records(200, positions=("input", "late"), heads=("linear",))
    costs = synthetic_costs(("input", "late"), ("linear",))
    choice = ExitConfig([ExitChoice("late", "linear", -np.inf)])
    full = Frontier([ExitConfig((), expected=expected(records, costs, ExitConfig()))])
    page = render_report(
        Frontier.of([*full, ExitConfig(choice.choices, None, expected(records, costs, choice))]),
        records,
        costs,
    )
    assert "outside this window" not in page
    assert "<td>-∞</td>" in page  # the threshold, in the table of exits


def test_records_without_exits(made):
    frontier, records, costs = made
    bare = ExitRecords(
        records.confidence, records.quality, records.final_quality, np.zeros((10, 3)), POSITIONS, HEADS
    )
    page = render_report(Frontier([frontier.full_model]), bare, costs)
    assert "These records hold no exits." in page
    assert "<svg" not in figure(page, "Accuracy against depth")


def test_exits_and_thresholds_are_listed(made, page):
    frontier, records, costs = made
    inside = re.search(r"<details>.*</details>", page, re.S)[0]
    listed = rows(page, "exits")
    assert len(listed) == sum(len(config.choices) + 1 for config in frontier)
    first = evaluate(records, costs, frontier[0])
    for cells, choice in zip(listed, frontier[0].choices, strict=False):
        share = first.exit_shares[records.positions.index(choice.position)]
        assert cells[-4:] == [choice.position, choice.head, f"{choice.threshold:.6g}", f"{100 * share:.1f}%"]
    assert listed[4][:3] == ["backbone&#x27;s own output", "", ""]
    assert inside.count("<tbody>") == len(frontier)


def test_provenance_is_shown_where_it_is_plain(page):
    facts = Page(page).text("dl")
    for wanted in ("Model ResNet-56", "search: method same-threshold", "cost: batch_size 1", "4,000 samples"):
        assert wanted in facts
    assert "parts" not in facts


HOSTILE = (
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{0}$ & $x",
    "]]></svg><style>*{display:none}</style>",
    "line\nbreak\x00\x1b\u202e\ud800",
    "日本語",
    "{title}{0}%s",
    "a-very-long-name.of.a.module.in.a.deep.tree.block.11",
)


def test_names_inject_nothing_and_survive():
    positions, heads = ("input", *HOSTILE), HOSTILE[::-1]
    search, report = (synthetic_records(400, seed, positions, heads) for seed in (0, 1))
    costs = synthetic_costs(positions, heads, unit=HOSTILE[1])
    frontier = common_thresholds(search, costs, [0.8, 0.95], head=heads[3], positions=positions[1:])
    page = render_report(
        frontier, report, costs, title=HOSTILE[0], notes=dict(zip(HOSTILE, heads, strict=True))
    )
    parsed, plain = Page(page), Page(render_report(*example(samples=(300, 300)), notes={"a": "b"}))
    assert parsed.tags() == plain.tags()
    names = {name for _, attributes in plain.elements for name in attributes}
    assert {name for _, attributes in parsed.elements for name in attributes} <= names
    assert parsed.text("title") == HOSTILE[0]
    shown = parsed.text()
    for name in HOSTILE:
        assert "".join(c if c.isprintable() else "\ufffd" for c in name) in shown
    page.encode("utf-8")
    assert any(text.startswith("…") and text.endswith("block.11") for text in svg_text(page, "against depth"))
    assert "…rac{1}{0}$ & $x" in svg_text(page, "against depth")  # dollars, not a formula


def test_numbers_on_a_bar_contrast_with_it():
    assert figures._on("#ffffff") == figures.INK
    assert figures._on("#101060") == "#ffffff"


def test_write_makes_folders_and_returns_the_path(tmp_path, made, page):
    path = write_report(str(tmp_path / "new" / "report.html"), *made, notes={"Model": "ResNet-56"})
    assert path == tmp_path / "new" / "report.html"
    assert path.read_bytes() == page.encode()
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_write_where_a_file_is_in_the_way(tmp_path, made):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", *made)


def test_without_matplotlib_the_extra_is_named_and_nothing_is_written(tmp_path, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "offramp\[plot\]"'):
        write_report(tmp_path / "report.html", *made)
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":  # python tests/report/test_html.py page.html: for looking at it
    write_report(
        sys.argv[1], *example(), notes={"Model": "ResNet-56", "Data": "CIFAR-10, synthetic stand-in"}
    )


# ------------------------------------------------------------------------------------------- guarantees


def certified(frontier, number, risk="rate of wrong answers"):
    """The frontier with a certificate of two guarantees on one configuration."""
    shown = (
        Guarantee("drop of quality", 0.01, 5000, -0.002, "exact trinomial test", 0.0123),
        Guarantee(risk, 0.05, 1234, 0.031, "exact binomial test", 0.04),
    )
    config = replace(frontier[number], certificate=Certificate(0.05, 5000, "labels", shown))
    return frontier.with_certificate(config)


def test_guarantees_are_shown_in_words_and_numbers():
    frontier, records, costs = example()
    page = render_report(certified(frontier, 4), records, costs)
    words = Page(page).text()
    assert "Configuration 4. With probability at least 95% over the draw of the 5,000 samples" in words
    assert "that configuration was chosen on it" in words
    first, second = rows(page, "guarantees")
    numbers = ["0.01", "\u22120.002", "5,000", "0.05", "0.012"]
    assert first == ["4", "drop of quality", *numbers, "exact trinomial test"]
    assert second[1:4] == ["rate of wrong answers", "0.05", "0.031"]


def test_without_a_certificate_there_is_no_such_section():
    frontier, records, costs = example()
    page = render_report(frontier, records, costs)
    assert "Guarantees" not in page
    assert "With probability" not in page


def test_names_of_risks_are_escaped():
    frontier, records, costs = example()
    page = render_report(certified(frontier, 2, "<script>alert(1)</script>"), records, costs)
    assert "<script>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_the_report_is_public(tmp_path):
    records = synthetic_records(60)
    heads = np.full((len(POSITIONS), len(HEADS)), 0.01)
    costs = CostTable(np.arange(len(POSITIONS) + 1.0), heads, "macs")
    frontier = offramp.search(records, costs, progress=False, step=None)
    path = offramp.report(tmp_path / "a.html", frontier, records, costs, title="Mine")
    offramp.write_report(tmp_path / "b.html", frontier, records, costs, title="Mine")
    assert path == tmp_path / "a.html"
    assert path.read_bytes() == (tmp_path / "b.html").read_bytes()
    with pytest.raises(
        InputError, match=r"write_report\(\): expected str or Path as the first .*: swapped\?"
    ):
        offramp.report(frontier, tmp_path / "a.html", records, costs)
