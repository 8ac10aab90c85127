"""The registry is loud: nothing is overwritten, nothing is guessed."""

from __future__ import annotations

import pytest

from offramp.errors import InputError
from offramp.registry import Registry


@pytest.fixture
def shapes():
    registry = Registry("shape")
    registry.register("square")(lambda: "□")
    registry.register("long-side_2")(lambda: "▭")
    return registry


def test_register_returns_the_entry_and_files_it(shapes):
    @shapes.register("circle")
    def circle():
        return "○"

    assert shapes["circle"] is circle
    assert circle() == "○"
    assert list(shapes) == ["circle", "long-side_2", "square"]  # sorted, whatever the order of registration
    assert "circle" in shapes
    assert "oval" not in shapes


def test_the_same_entry_twice_is_no_conflict(shapes):
    entry = shapes["square"]
    assert shapes.register("square")(entry) is entry


def test_a_taken_name_is_refused_and_the_first_entry_stays(shapes):
    before = shapes["square"]
    with pytest.raises(InputError, match=r"shape 'square' is already registered as .*choose another name"):
        shapes.register("square")(lambda: "■")
    assert shapes["square"] is before


@pytest.mark.parametrize("name", ["", "two words", "1st", "a/b", "a.b"])
def test_names_that_cannot_be_typed_are_refused(shapes, name):
    with pytest.raises(InputError, match=r"a shape needs a name of letters"):
        shapes.register(name)


def test_an_unknown_name_gets_a_hint_and_the_list(shapes):
    with pytest.raises(
        InputError, match=r"unknown shape 'sqare'; did you mean 'square'\?; known: long-side_2, square"
    ):
        shapes["sqare"]
    with pytest.raises(InputError, match=r"unknown shape 'xyz'; known: long-side_2, square"):
        shapes["xyz"]


def test_an_unhashable_key_is_an_unknown_name(shapes):
    with pytest.raises(InputError, match=r"unknown shape \['square'\]"):
        shapes[["square"]]
