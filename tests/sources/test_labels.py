"""Names of classes against the model's own: whatever their case, numbers as indices, and what is refused."""

import pytest

from offramp.errors import InputError
from offramp.sources.labels import class_numbers, how_numbered, parse_labels

SIGNS = {"positive": 0, "negative": 1}


@pytest.mark.parametrize(
    ("names", "known", "wanted"),
    [
        (["Positive", "Negative"], SIGNS, {"Positive": 0, "Negative": 1}),
        (["NEGATIVE"], SIGNS, {"NEGATIVE": 1}),
        (["B", "A"], {"a": 1, "b": 0}, {"A": 1, "B": 0}),
        (
            ["guinea_pig", "Great-Dane"],
            {"Guinea pig": 3, "great dane": 7},
            {"guinea_pig": 3, "Great-Dane": 7},
        ),
        ([" cat ", "STRASSE"], {"cat": 2, "straße": 5}, {" cat ": 2, "STRASSE": 5}),
        (["1", "3"], {"1": 0, "2": 1, "3": 2}, {"1": 0, "3": 2}),  # stars: names, not indices
    ],
)
def test_the_models_names_whatever_their_case(names, known, wanted):
    assert class_numbers(names, known, 10, "DATA x") == wanted


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (
            ["positive", "neg"],
            SIGNS,
            r"got 2 \(neg, positive\); .* no class called 'neg'; its own are positive",
        ),
        (["pos", "neg"], SIGNS, r"expected the model's names of classes, got 2 \(neg, pos\).*classes=NAME"),
        (["Cat", "cat"], {"cat": 0, "dog": 1}, "'Cat' and 'cat' would both be class 0; give it one name"),
        (["CAT"], {"cat": 0, "Cat": 1, "dog": 2}, "'CAT' can be more than one of the model's classes"),
        (["cat", "7"], {"cat": 0, "dog": 1, "bird": 2}, "the model has no class called '7'"),
    ],
)
def test_a_near_miss_shows_both_lists(names, known, message):
    with pytest.raises(InputError, match=message):
        class_numbers(names, known, len(known), "DATA x")


def test_names_that_are_numbers_are_indices():
    thousand = {f"n{i:08}": i for i in range(1000)}
    assert class_numbers(["200", "7", "31"], thousand, 1000, "DATA x") == {"200": 200, "7": 7, "31": 31}
    every = class_numbers([str(i) for i in range(1000)], {}, 1000, "DATA x")
    assert all(int(name) == index for name, index in every.items())
    assert class_numbers(["007", "010"], {}, 20, "DATA x") == {"007": 7, "010": 10}
    assert class_numbers([str(i) for i in range(1, 10)], {}, 9, "DATA x")["1"] == 0  # 1 to 9, in order


@pytest.mark.parametrize(
    ("names", "outputs", "message"),
    [
        (
            [str(i) for i in range(1, 11)],
            10,
            r"expected 0 to 9, got 1 to 10; rename them, or name them in the",
        ),
        (["0", "12"], 10, "expected 0 to 9, got 0 to 12"),
        (["-1", "0"], 10, "got -1 to 0"),
        (["1", "01"], 10, "'01' and '1' would both be class 1"),
    ],
)
def test_numbers_that_are_no_indices(names, outputs, message):
    with pytest.raises(InputError, match=message):
        class_numbers(names, {}, outputs, "DATA x")


def test_how_names_became_numbers_is_told():
    assert how_numbered({"positive": 0}, SIGNS) == "the model's own names"
    assert how_numbered({"Positive": 0}, SIGNS) == "the model's own names, whatever their case"
    assert how_numbered({"7": 7}, SIGNS).startswith("names that are numbers are indices")
    assert how_numbered({"a": 0, "b": 1}, {}).startswith("numbered in alphabetical order")


def test_labels_as_text():
    def parse(*labels, floating=False, known=()):
        return parse_labels(labels, "DATA x: labels", floating, dict.fromkeys(known, 0))

    assert parse("1.0", "0.", None, "+2") == [1, 0, None, 2]
    assert parse("1", "cat") == ["1", "cat"]
    assert parse("0.5", "2", floating=True) == [0.5, 2.0]
    assert parse("1", "2", known=("1", "2", "3")) == ["1", "2"]
    for labels, floating, message in (
        (("0.5", "1"), False, r"expected classes, got the number 0.5; .* --task regression"),
        (("nan", "1"), False, "expected classes, got the number nan"),
        (("9" * 31,), False, "expected classes, got the number 9999"),
        (("nan",), True, "expected finite numbers as labels, got 'nan'"),
        (("good",), True, "expected finite numbers as labels, got 'good'"),
    ):
        with pytest.raises(InputError, match=message):
            parse(*labels, floating=floating)


def test_folders_of_imagenet_are_in_the_order_of_the_models_classes():
    known = {"tench": 0, "goldfish": 1, "great white shark": 2}
    folders = ["n01484850", "n01440764", "n01443537"]
    found = class_numbers(folders, known, 3, "DATA")
    assert found == {"n01440764": 0, "n01443537": 1, "n01484850": 2}
    assert how_numbered(found, known) == "WordNet's numbers in their order, as ImageNet counts its classes"
    with pytest.raises(InputError, match="expected 3 classes"):
        class_numbers(folders[:2], known, 3, "DATA")
    with pytest.raises(InputError, match="the model's names of classes"):
        class_numbers(["n01440764", "goldfishes", "n01484850"], known, 3, "DATA")
