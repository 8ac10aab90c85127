"""One set of samples into three, and names of classes into numbers."""

import pytest

from offramp.errors import InputError
from offramp.sources.labels import class_numbers
from offramp.sources.splits import Guarded, divided, limited, three_sets

HUNDRED = {name: [(f"{name}{i}", name) for i in range(100)] for name in "ab"}


def of(name, samples):
    return [sample for sample in samples if sample[1] == name]


def test_a_division_is_disjoint_complete_and_by_class():
    parts = divided(HUNDRED, ("one", "two"), (0.7, 0.3), seed=0)
    assert sorted(parts["one"] + parts["two"]) == sorted(HUNDRED["a"] + HUNDRED["b"])
    for name in "ab":
        assert len(of(name, parts["one"])) in (70, 71)
    assert [label for _, label in parts["one"][:20]] not in (["a"] * 20, ["b"] * 20)


def test_a_division_depends_on_the_seed_and_on_its_own_class_alone():
    first = divided(HUNDRED, ("one", "two"), (0.5, 0.5), seed=0)
    assert first == divided(HUNDRED, ("one", "two"), (0.5, 0.5), seed=0)
    assert set(first["one"]) != set(divided(HUNDRED, ("one", "two"), (0.5, 0.5), seed=1)["one"])
    alone = divided({"a": HUNDRED["a"]}, ("one", "two"), (0.5, 0.5), seed=0)
    assert set(alone["one"]) == set(of("a", first["one"]))


def test_small_classes_keep_the_shares_together():
    groups = {f"c{i}": [(f"{i}/{j}", f"c{i}") for j in range(2)] for i in range(500)}
    parts = divided(groups, ("train", "search", "report"), (0.6, 0.2, 0.2), seed=3)
    assert [round(len(part) / 1000, 1) for part in parts.values()] == [0.6, 0.2, 0.2]
    halves = divided(groups, ("one", "two"), (0.5, 0.5), seed=3)
    assert len(halves["one"]) == 500  # one of every class


def test_equal_samples_stay_together():
    mails = {"spam": [(f"text {i % 10}", "spam") for i in range(40)]}
    parts = divided(mails, ("one", "two"), (0.5, 0.5), seed=0)
    assert not set(parts["one"]) & set(parts["two"])
    assert len(parts["one"]) + len(parts["two"]) == 40


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ([""], {"train": 120, "search": 40, "report": 40}),
        (["train"], {"train": 120, "search": 40, "report": 40}),
        (["train", "val"], {"train": 200, "search": 100, "report": 100}),
        (["train", "search"], {"train": 200, "search": 200}),
        (["train", "test"], {"train": 160, "search": 40, "report": 200}),
        (["train", "val", "test"], {"train": 200, "search": 200, "report": 200}),
        (["train", "search", "report"], {"train": 200, "search": 200, "report": 200}),
    ],
)
def test_the_sets_there_are_become_three(names, sizes):
    found = {
        name: {k: [(name + what, k) for what, _ in members] for k, members in HUNDRED.items()}
        for name in names
    }
    splits = three_sets(found, 0, "DATA x")
    assert {name: len(members) for name, members in splits.items()} == pytest.approx(sizes, abs=2)
    everything = [sample for members in splits.values() for sample in members]
    assert len(set(everything)) == len(everything) == 200 * len(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["val", "test"], r"DATA x: expected a set 'train', got test, val"),
        (["train", "val", "search"], r"both 'val' and 'search' would be the search split; keep one"),
    ],
)
def test_sets_that_are_no_three(names, message):
    with pytest.raises(InputError, match=message):
        three_sets(dict.fromkeys(names, HUNDRED), 0, "DATA x")


def test_too_few_samples():
    with pytest.raises(InputError, match=r"DATA x: no samples for the (search|report) split; give more"):
        three_sets({"": {"a": [("one", "a")]}}, 0, "DATA x")


def test_a_limit_takes_from_all_groups_alike():
    samples = divided({"a": HUNDRED["a"], "b": HUNDRED["b"][:5]}, ("all",), (1.0,), seed=0)["all"]
    few = limited(samples, lambda sample: sample[1], 14)
    assert (len(of("a", few)), len(of("b", few))) == (9, 5)
    assert few == [sample for sample in samples if sample in few]
    assert limited(samples, lambda sample: sample[1], 1000) == samples


def test_names_the_model_knows_are_its_numbers():
    assert class_numbers(["dog", "cat"], {"bird": 0, "cat": 2, "dog": 1}, 3, "DATA x") == {"cat": 2, "dog": 1}


def test_unknown_names_are_numbered_in_order():
    assert class_numbers(["b", "a", "b"], {}, 2, "DATA x") == {"a": 0, "b": 1}


def test_another_number_of_classes_is_refused():
    message = (
        r"DATA x: expected 1000 classes because the model has 1000 outputs, got 5 \(a, b, c, d, \.\.\.\); "
        r"use the model trained for these classes"
    )
    with pytest.raises(InputError, match=message):
        class_numbers("abcde", {}, 1000, "DATA x")
    with pytest.raises(InputError, match=r"got 2 \(cat, cow\); the model has no class called 'cow'"):
        class_numbers(["cat", "cow"], {"cat": 0, "dog": 1, "bird": 2}, 3, "DATA x")


def test_a_guarded_loader_names_split_and_batch():
    def fails(index, batch):
        if index == 1:
            raise InputError(f"expected less than {batch}")

    loader = Guarded("DATA x: search", [7, 8, 9], fails)
    assert len(loader) == 3
    seen = []
    with pytest.raises(InputError, match=r"^DATA x: search: batch 1: expected less than 8$"):
        seen.extend(loader)
    workers = InputError(
        "Caught InputError in DataLoader worker\nTraceback ...\nofframp.InputError: no image\n"
    )

    def broken():
        yield 1
        raise workers

    class Once:
        def __iter__(self):
            return broken()

    with pytest.raises(InputError, match=r"^DATA x: search: batch 1: no image$"):
        list(Guarded("DATA x: search", Once()))
