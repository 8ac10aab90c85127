"""The benchmark of promises: draws, ways to choose, tables and verdicts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.honesty import honesty
from bench.honesty.draw import OURS, WAYS, Draw, cheapest, isotonic, measure, parts
from bench.search.recordsets import generated, store

ASKS = honesty.ASKS


@pytest.fixture(scope="module")
def pool():
    return generated(0, 400, positions=4, heads=2)


@pytest.mark.parametrize("views", [1, 4])
def test_draws_are_disjoint_and_take_groups_whole(pool, views):
    records = replace(pool[0], groups=np.arange(400) % (400 // views))
    marked = replace(records, final_confidence=np.arange(400, dtype=np.float32))
    seen = []
    for few, rest in parts(marked, 120, 3, seed=0):
        drawn, left = (set(part.final_confidence.astype(int).tolist()) for part in (few, rest))
        assert len(drawn) == 120
        assert drawn | left == set(range(400))
        assert not set(few.groups.tolist()) & set(rest.groups.tolist())
        seen.append(frozenset(drawn))
    assert len(set(seen)) == 3


def test_cheapest_within_a_drop():
    cost, drop = np.array([1.0, 0.8, 0.3, 0.5]), np.array([0.0, 0.005, 0.02, 0.01])
    assert [cheapest(cost, drop, ask) for ask in (0.0, 0.005, 0.01, 1.0)] == [0, 1, 3, 2]


def test_isotonic_drops_fall_with_cost():
    cost, drop = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.03, 0.01, 0.02, 0.0])
    assert isotonic(cost, drop) == pytest.approx([0.03, 0.015, 0.015, 0.0])


def test_a_draw_chooses_in_every_way(pool):
    few, rest = next(parts(pool[0], 150, 1, seed=0))
    draw = measure(few, rest, pool[1], ASKS, 0)
    assert set(draw.cost) == set(draw.kept) == set(WAYS)
    for way in WAYS:
        assert len(draw.cost[way]) == len(draw.kept[way]) == len(ASKS)
        assert all(dear >= cheap for dear, cheap in zip(draw.cost[way], draw.cost[way][1:], strict=False))
    assert max(np.array(draw.kept["oracle"]) - ASKS) <= 1e-12
    assert 0 <= draw.covered <= 1


def test_summary_and_verdicts():
    def drawn(kept, cost):
        return Draw({way: [cost] * 5 for way in WAYS}, {way: [kept] * 5 for way in WAYS}, 0.95)

    told = honesty.summary([drawn(0.004, 0.5), drawn(0.008, 0.7)])
    assert told["covered"] == 0.95
    own = told["ways"][OURS]
    assert (own["cost"][0], own["kept"][0], own["error"][0]) == pytest.approx((0.6, 0.006, 0.002))
    assert own["above"] == [1.0, 1.0, 0.5, 0.0, 0.0]
    document = {"pool": {"pool": 10, "draws": 2, "asks": list(ASKS), "samples": {"1000": told}}}
    lines = "\n".join(honesty.verdicts(document))
    assert "standard errors: 1 of 5 cells" in lines  # 0.006 where 0.001 was asked, errors of 0.002
    assert "pool 1000: asked 0.1, kept 0.60 (2.5 errors)" in lines
    assert "intervals hold 95.0% to 95.0%" in lines


def test_the_command_writes_json_and_a_picture_and_shows_them_again(tmp_path, monkeypatch, capsys, pool):
    for name in ("a", "b"):
        store(tmp_path / name, *pool)
    folders = f"joined={tmp_path / 'a'}+{tmp_path / 'b'}"
    arguments = ["--pools", folders, "--grouped", "joined=4", "--samples", "120", "--draws", "2"]
    for rest in ([*arguments, "--uncertified"], ["--stored"]):
        monkeypatch.setattr(sys, "argv", ["honesty", *rest, "--out", str(tmp_path)])
        honesty.main()
        assert "2 draws from 800" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "honesty.png").stat().st_size > 10_000
    assert "joined" in (tmp_path / "honesty.json").read_text()
    assert "certified 0.9" not in Path(tmp_path / "honesty.json").read_text()


def test_joined_folders_number_their_groups_apart(tmp_path, pool):
    for name in ("a", "b"):
        store(tmp_path / name, *pool)
    records, _ = honesty.joined([tmp_path / "a", tmp_path / "b"], 4)
    assert records.samples == 800
    assert len(np.unique(records.groups)) == 200
    assert records.groups[0] == records.groups[100] == records.groups[300] != records.groups[400]
    assert honesty.joined([tmp_path / "a"], 1)[0].groups is None
