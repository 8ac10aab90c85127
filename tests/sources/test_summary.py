"""What was found in model and data: as JSON and back, in words, and compared."""

import json
from dataclasses import replace

import pytest

from offramp.errors import ArtifactError, InputError
from offramp.sources.summary import DataSummary, check_same_inputs

SUMMARY = DataSummary(
    model="timm:resnet18",
    data="imagefolder:a[/b]\x1b[31m",
    inputs={"kind": "images", "mean": [0.5, 0.25], "key": None},
    splits={"train": 1, "search": 1200},
    classes={f"c{i}": i for i in range(12)},
    matched="the model's own names",
    notes=("1 file is not used", "turned"),
)


def test_json_and_back():
    assert DataSummary.from_dict(json.loads(json.dumps(SUMMARY.to_dict()))) == SUMMARY
    assert DataSummary.from_dict(DataSummary().to_dict()) == DataSummary()


@pytest.mark.parametrize(
    "wrong",
    [None, [], {"model": ""}, {"splits": {"train": -1}}, {"splits": {"train": True}}, {"classes": {"a": "b"}},
     {"classes": []}, {"notes": "a"}, {"notes": [None]}, {"model": 3}, {"more": 1}],
)  # fmt: skip
def test_anything_else_is_refused(wrong):
    document = (
        {**SUMMARY.to_dict(), **wrong} if wrong and isinstance(wrong, dict) and len(wrong) == 1 else wrong
    )
    if wrong == {"model": ""}:
        document = wrong
    with pytest.raises(ArtifactError, match="what it says of its data: "):
        DataSummary.from_dict(document)


def test_in_words():
    facts = SUMMARY.facts()
    assert facts["splits"] == "train 1 sample, search 1,200 samples"
    assert facts["classes"].startswith("c0 = 0, c1 = 1")
    assert facts["classes"].endswith(", ... 12 in all (the model's own names)")
    assert facts["inputs"] == "images, mean 0.5/0.25"
    assert facts["data"] == "imagefolder:a[/b]\ufffd[31m"
    assert facts["note"] == "1 file is not used; turned"
    assert DataSummary().facts() == {}


def test_inputs_that_differ_name_both():
    check_same_inputs("DATA x", SUMMARY, {"mean": (0.5, 0.25), "size": [3, 4, 4]})
    with pytest.raises(
        InputError, match=r"with mean 0.5/0.25, this has mean none; .*MODEL timm:resnet18 and"
    ):
        check_same_inputs("DATA x", SUMMARY, {"mean": None})
    with pytest.raises(InputError, match="with key none, this has key pixels"):
        check_same_inputs("DATA x", replace(SUMMARY), {"key": "pixels"})
