"""The dial in the terminal: what it says, in a pipe, on a narrow terminal, without plotext, as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import offramp
import small
from dials import dial_costs, dial_records, honest_frontier, in_sample_frontier
from offramp.cli import app
from offramp.core.display import UNKNOWN
from offramp.core.frontier import Frontier


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts with promised and with in-sample figures: {name: (folder, frontier)}."""
    net = small.network()
    names = {"positions": net.positions, "heads": net.head_names}
    records, costs = dial_records(1500, **names), dial_costs(**names)
    wanted = {"head": "conv", "positions": net.positions[1:], "count": 40}
    frontiers = {
        "honest": honest_frontier(records, costs, **wanted),
        "in-sample": in_sample_frontier(records, costs, **wanted),
    }
    base = tmp_path_factory.mktemp("shown")
    for name, frontier in frontiers.items():
        offramp.save(base / name, net, frontier, costs)
    return {name: (base / name, frontier) for name, frontier in frontiers.items()}


@pytest.fixture
def invoke(monkeypatch):
    """Run ``offramp show`` in this process on a terminal of so many columns: (code, output, error)."""

    def call(*arguments, width=100):
        monkeypatch.setenv("COLUMNS", str(width))
        app._state["debug"] = False
        result = CliRunner().invoke(app.app, ["show", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    return call


def table_lines(out):
    lines = out.splitlines()
    start = next(at for at, line in enumerate(lines) if line.lstrip().startswith("#"))
    rest = lines[start + 1 :]
    return [line for line in rest if re.match(r"\s*(> )?(\d+|between)\s+\d", line)]


def test_promised_figures(invoke, made):
    folder, frontier = made["honest"]
    code, out, err = invoke(folder, "--all")
    assert (code, err) == (0, "")
    first = out.splitlines()[0]
    assert first == f"{folder}: {len(frontier)} configurations of exits for a Picture, classification"
    assert "figures promised for new samples, from 1,500 search samples" in out
    assert "full model: quality 9" in out
    assert "cost 125.7 M MACs" in out
    assert out.count("promised") == 3  # in the header, over the column and over the plot
    assert "in-sample" not in out
    lines = table_lines(out)
    assert len(lines) == len(frontier)
    for line, config in zip(lines, frontier, strict=True):
        own = config.expected
        low, high = own.drop_interval
        wanted = [f"{own.relative_cost:.1%}", f"{own.quality:.2%}", f"{100 * own.drop:.2f}"]
        wanted += [f"{100 * low:.2f}", "to", f"{100 * high:.2f}", str(len(config.choices))]
        assert line.split()[1:8] == wanted
    assert lines[0].endswith("blocks.0, blocks.1")
    assert UNKNOWN not in out


def test_in_sample_figures_are_called_so(invoke, made):
    folder, _ = made["in-sample"]
    code, out, _ = invoke(folder)
    assert code == 0
    assert "figures of the 1,500 search samples themselves (in-sample: optimistic)" in out
    assert out.replace(str(folder), "").count("in-sample") == 3
    assert "promised" not in out
    assert len(table_lines(out)[0].split()) == 7  # no interval


def test_many_configurations_are_thinned(invoke, made):
    folder, frontier = made["honest"]
    assert len(frontier) > 16
    _, out, _ = invoke(folder)
    lines = table_lines(out)
    assert len(lines) == 16
    assert lines[-1].split()[0] == str(len(frontier) - 1)
    assert f"16 of {len(frontier)}, evenly spread; --all lists every one" in out
    assert "--all lists" not in invoke(folder, "--all")[1]


@pytest.mark.parametrize(
    ("option", "value"), [("max_drop", 0.013), ("max_cost", 0.71), ("min_quality", 0.9), ("tradeoff", None)]
)
def test_the_chosen_one_is_marked(invoke, made, option, value):
    folder, frontier = made["honest"]
    if option == "tradeoff":
        code, _, err = invoke(folder, "--tradeoff", "0.9")
        assert code == 1
        assert "this frontier holds no lambda values" in err
        return
    chosen = frontier.at(**{option: value})
    _, out, _ = invoke(folder, f"--{option.replace('_', '-')}", value)
    (marked,) = [line for line in table_lines(out) if line.lstrip().startswith(">")]
    assert marked.split()[1] == str(list(frontier).index(chosen))
    assert "O chosen" in out
    assert "O" in out.split("over cost (%)")[1].split("* full model")[0]


def test_a_choice_out_of_range(invoke, made):
    code, out, err = invoke(made["honest"][0], "--max-cost", 0.001)
    assert (code, out) == (1, "")
    assert "costs run from" in err


def test_one_between_is_listed_in_its_place(invoke, made, tmp_path):
    _, frontier = made["honest"]
    net, costs = small.network(), dial_costs(positions=small.network().positions, heads=small.HEADS)
    configs = [*frontier]
    spare = configs.pop(10)  # like the one below, but more expensive: kept to spend budgets on
    own = offramp.Expected(
        configs[9].expected.quality,
        spare.expected.cost,
        spare.expected.full_quality,
        spare.expected.full_cost,
        1500,
        configs[9].expected.drop_interval,
        configs[9].expected.in_sample_quality,
    )
    between = offramp.ExitConfig(spare.choices, expected=own)
    offramp.save(tmp_path / "a", net, Frontier(configs, between=[between]), costs)
    code, out, _ = invoke(tmp_path / "a", "--max-cost", own.relative_cost + 1e-9)
    assert code == 0
    (marked,) = [line for line in table_lines(out) if line.lstrip().startswith(">")]
    assert marked.split()[1] == "between"
    document = json.loads(invoke(tmp_path / "a", "--max-cost", own.relative_cost + 1e-9, "--json")[1])
    assert document["chosen"]["index"] is None
    costs_listed = [row["relative_cost"] for row in document["configurations"]]
    assert costs_listed == sorted(costs_listed)


def test_json(invoke, made):
    folder, frontier = made["honest"]
    code, out, _ = invoke(folder, "--max-drop", 0.01, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["samples"], document["in_sample"], document["unit"]) == (1500, False, "macs")
    assert [row["index"] for row in document["configurations"]] == list(range(len(frontier)))
    chosen = document["chosen"]
    assert chosen["expected"]["drop_interval"] == list(frontier.at(max_drop=0.01).expected.drop_interval)
    assert [row for row in document["configurations"] if row["chosen"]] == [chosen]
    assert chosen["drop"] <= 0.01
    document = json.loads(invoke(made["in-sample"][0], "--json")[1])
    assert (document["in_sample"], document["chosen"]) == (True, None)


@pytest.mark.parametrize("width", [42, 60, 80, 200])
def test_it_fits_the_terminal(invoke, made, width):
    _, out, _ = invoke(made["honest"][0], width=width)
    lines = out.splitlines()
    assert max(map(len, lines[4:])) <= width
    assert len(table_lines(out)) == 16  # none is broken
    assert ("95% interval" in lines[5]) is (width >= 56)
    assert ("where" in lines[5]) is (width >= 72)
    plot = [line for line in lines if line.lstrip().startswith("\u2514")]
    assert len(plot) == 1
    assert "\x1b" not in out


def test_a_very_narrow_terminal_gets_no_plot(invoke, made):
    code, out, _ = invoke(made["honest"][0], width=30)
    assert code == 0
    assert "over cost" not in out


def test_without_plotext_one_line_says_how_to_get_the_plot(invoke, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotext", None)
    code, out, _ = invoke(made["honest"][0])
    assert code == 0
    assert len(table_lines(out)) == 16
    assert 'a plot in the terminal needs plotext; install it: pip install "offramp[terminal]"' in out


def test_a_terminal_that_knows_no_such_characters(made):
    """In a process of its own, piped, with ASCII as its encoding."""
    script = f"from offramp.cli import app; app.app(['show', {str(made['honest'][0])!r}])"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode("ascii")
    assert len(table_lines(out)) == 16
    assert "over cost" not in out


def test_an_artifact_that_is_not_there(invoke, tmp_path):
    code, out, err = invoke(tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert "nothing" in err
