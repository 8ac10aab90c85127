"""Ways of computing spans: what goes together, and how they are named."""

from __future__ import annotations

import dataclasses

import pytest

from offramp.errors import InputError
from offramp.runtime.execution import Execution

WAYS = {
    "plain": Execution(),
    "channels-last": Execution(channels_last=True),
    "bfloat16": Execution(dtype="bfloat16"),
    "int8": Execution(int8=True),
    "inductor": Execution(compile="inductor"),
    "channels-last bfloat16 aot": Execution("aot", "bfloat16", True),
}


@pytest.mark.parametrize("name", WAYS)
def test_names(name: str) -> None:
    assert WAYS[name].name == name


def test_only_the_default_is_plain_and_exact() -> None:
    assert [how.plain for how in WAYS.values()] == [True] + [False] * 5
    assert [how.tolerance == 0 for how in WAYS.values()] == [True] + [False] * 5


def test_coarser_numbers_are_given_more_room() -> None:
    order = ("plain", "channels-last", "bfloat16", "int8")
    assert sorted(order, key=lambda name: WAYS[name].tolerance) == list(order)
    assert WAYS["inductor"].tolerance == WAYS["channels-last"].tolerance
    assert WAYS["channels-last bfloat16 aot"].tolerance == WAYS["bfloat16"].tolerance


def test_it_is_written_as_it_is_typed() -> None:
    how = Execution(compile="aot", dtype="bfloat16")
    assert str(how) == "Execution(compile='aot', dtype='bfloat16')"
    assert str(Execution()) == "Execution()"
    assert repr(how) == "Execution(compile='aot', dtype='bfloat16', channels_last=False, int8=False)"


def test_it_is_data() -> None:
    assert len({Execution(), Execution(compile=None), Execution(int8=True)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Execution().int8 = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compile": "jit"}, "Execution: compile: expected 'inductor' or 'aot' or None, got 'jit'"),
        ({"compile": True}, "Execution: compile: expected 'inductor' or 'aot' or None, got True"),
        ({"dtype": "float16"}, "Execution: dtype: expected 'bfloat16' or None, got 'float16'"),
        ({"channels_last": 1}, "Execution: channels_last: expected True or False, got 1"),
        ({"int8": "yes"}, "Execution: int8: expected True or False, got 'yes'"),
        (
            {"int8": True, "dtype": "bfloat16"},
            "Execution: expected int8=True or dtype='bfloat16', got both; "
            "int8 is for eager float32 models, so choose one",
        ),
        (
            {"int8": True, "compile": "aot"},
            "Execution: expected int8=True or compile='aot', got both; "
            "int8 is for eager float32 models, so choose one",
        ),
    ],
    ids=["compile", "compile-true", "dtype", "channels_last", "int8", "int8-bfloat16", "int8-aot"],
)
def test_unknown_values_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        Execution(**arguments)  # type: ignore[arg-type]
    assert str(error.value) == message
