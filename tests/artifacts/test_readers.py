"""Readers of every file under anything that may be in it: only errors of our own, and no changed answer."""

from __future__ import annotations

import json
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import offramp
from offramp.errors import OfframpError
from readers import CHECKSUMMED, READERS, all_wholes, outcome, resealed, spoiled

SHORT = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
FEWER = settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
SLOW = ("artifact, attached", "tasks")
"""Readers that trace the model each time."""

Wholes = tuple[dict[str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    return all_wholes(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spoiled")


seeds = st.integers(0, 2**32 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def check_spoiled(name: str, wholes: Wholes, place: Path, seed: int) -> None:
    kind, read = READERS[name]
    what = spoiled(wholes[0][kind], place / name, np.random.default_rng(seed))
    found = outcome(read, place / name)
    if name in CHECKSUMMED:  # documents alone have no checksum
        assert found in (None, wholes[1][name]), what


def check_resealed(name: str, wholes: Wholes, place: Path, seed: int) -> None:
    kind, read = READERS[name]
    resealed(wholes[0][kind], place / name, np.random.default_rng(seed))
    outcome(read, place / name)


@pytest.mark.parametrize("name", READERS)
def test_spoiled_bytes_change_no_answer(name: str, wholes: Wholes, place: Path) -> None:
    SHORT(given(seeds)(lambda seed: check_spoiled(name, wholes, place, seed)))()


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("records", "tasks")])
def test_wrong_values_under_right_checksums_raise_errors_of_our_own(
    name: str, wholes: Wholes, place: Path
) -> None:
    SHORT(given(seeds)(lambda seed: check_resealed(name, wholes, place, seed)))()


@pytest.mark.parametrize("read", [offramp.Frontier, offramp.CostTable, offramp.ExitConfig])
@given(st.text(max_size=200))
def test_any_text_is_refused(read: Any, text: str) -> None:
    with pytest.raises(OfframpError):
        read.from_json(text)


@given(st.binary(max_size=300))
@settings(suppress_health_check=list(HealthCheck))
def test_any_bytes_are_no_records(place: Path, content: bytes) -> None:
    (place / "bytes").write_bytes(content)
    with pytest.raises(OfframpError):
        offramp.ExitRecords.load(place / "bytes")


@pytest.mark.parametrize("kind", ["frontier", "costs", "config"])
@given(json_values, json_values)
def test_documents_of_any_values_raise_errors_of_our_own(kind: str, one: Any, other: Any) -> None:
    names = ("backbone", "heads", "unit", "meta", "by_batch", "configs", "by_tradeoff", "between", "choices")
    document = {"format": f"offramp.{kind}", "version": 1, **dict.fromkeys(names, one), "tradeoff": other}
    read = {"frontier": offramp.Frontier, "costs": offramp.CostTable, "config": offramp.ExitConfig}[kind]
    with suppress(OfframpError):
        read.from_json(json.dumps(document))


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_twenty_thousand_spoiled_inputs(name: str, wholes: Wholes, place: Path) -> None:
    budget, before = FEWER if name in SLOW else LONG, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    budget(given(seeds)(lambda seed: check_spoiled(name, wholes, place, seed)))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in READERS if name not in ("records", "tasks")])
def test_twenty_thousand_wrong_values(name: str, wholes: Wholes, place: Path) -> None:
    budget = FEWER if name in SLOW else LONG
    budget(given(seeds)(lambda seed: check_resealed(name, wholes, place, seed)))()
