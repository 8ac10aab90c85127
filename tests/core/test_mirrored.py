"""Fields that files keep in ``meta``: read from there, written there, and never two different values."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from offramp.core.config import ExitConfig
from offramp.core.costs import CostTable
from offramp.core.evaluate import expected
from offramp.core.frontier import Frontier
from offramp.core.records import ExitRecords
from offramp.errors import ArtifactError, InputError


def records(**more):
    return ExitRecords(
        confidence=np.zeros((1, 1, 4)),
        quality=np.zeros((1, 1, 4)),
        final_quality=np.ones(4),
        exists=np.ones((1, 1)),
        positions=("input",),
        heads=("linear",),
        **more,
    )


def costs(**more):
    return CostTable(np.array([0.0, 2.0]), np.array([[0.1]]), "seconds", **more)


def frontier(**more):
    found, table = records(), costs()
    return Frontier([ExitConfig(expected=expected(found, table, ExitConfig()))], **more)


def test_a_field_is_read_from_meta():
    assert records(meta={"quality": "agreement"}).quality_kind == "agreement"
    assert costs(meta={"plain": 1.5}).eager == 1.5
    assert frontier(meta={"max_exits": 3}).max_exits == 3


def test_meta_says_what_the_field_does():
    assert records(quality_kind="labels", meta={"task": "x"}).meta == {"quality": "labels", "task": "x"}
    assert costs(eager=1.5).meta == {"plain": 1.5}
    assert dict(frontier(max_exits=2).meta) == {"max_exits": 2}


def test_a_field_fills_what_meta_leaves_open():
    assert dict(frontier(max_exits=2, meta={"max_exits": None}).meta) == {"max_exits": 2}
    assert records(quality_kind="labels", meta={"quality": None}).meta == {"quality": "labels"}


@pytest.mark.parametrize("value", [None, 3, ["agreement"]])
def test_a_value_that_the_field_cannot_have_is_left_in_meta(value):
    found = records(meta={"quality": value})
    assert found.quality_kind is None
    assert found.meta == {"quality": value}


@pytest.mark.parametrize("value", [True, -1.0, float("inf"), "fast"])
def test_costs_that_are_no_costs_are_not_read(value):
    assert costs(meta={"plain": value}).eager is None
    with pytest.raises(
        InputError, match=r"CostTable.eager: expected a finite number above 0, got .*; leave it out"
    ):
        costs(eager=value)


def test_two_values_are_refused():
    with pytest.raises(
        InputError,
        match=r"ExitRecords.quality_kind: expected 'labels', as meta.'quality'. says, got 'agreement'",
    ):
        records(quality_kind="agreement", meta={"quality": "labels"})
    with pytest.raises(InputError, match=r"Frontier.max_exits: expected 2, as meta.*says, got 3"):
        frontier(max_exits=3, meta={"max_exits": 2})


def test_files_keep_the_field(tmp_path):
    records(quality_kind="agreement").save(tmp_path / "records.safetensors")
    assert ExitRecords.load(tmp_path / "records.safetensors").quality_kind == "agreement"
    assert CostTable.from_json(costs(eager=1.5).to_json()).eager == 1.5
    assert Frontier.from_json(frontier(max_exits=2).to_json()).max_exits == 2


def test_a_change_keeps_the_field():
    assert replace(records(quality_kind="labels"), final_quality=np.zeros(4)).quality_kind == "labels"
    assert Frontier.of(frontier(max_exits=2), meta={"max_exits": 2}).max_exits == 2


def test_meta_that_is_no_mapping_is_refused_when_read():
    document = json.loads(frontier().to_json())
    document["meta"] = 5
    with pytest.raises(ArtifactError, match="frontier: damaged"):
        Frontier.from_json(json.dumps(document))
