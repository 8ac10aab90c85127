"""Damage to a working folder, and builds that meet in one: many of them."""

from __future__ import annotations

import numpy as np
import pytest

import builds

pytestmark = pytest.mark.long


def test_two_hundred_flips_change_no_artifact(tmp_path):
    assert builds.changed_by_flips(tmp_path, flips=200, seed=1) == []


@pytest.mark.parametrize("pair", range(40))
def test_of_two_builds_at_once_each_is_whole_or_refused(tmp_path, pair):
    whole = builds.run(tmp_path / "lone", tmp_path / "whole")
    made, said = builds.ends_of_a_pair(tmp_path, float(np.random.default_rng(pair).uniform(0, 0.4)))
    assert made
    assert all(each == whole for each in made)
    assert all("work is in use by process" in text for text in said)
