"""Tables of texts: columns, splits, labels, tokenizing, and what is refused."""

import csv
from dataclasses import replace

import pytest
import torch

from data_files import Tokens, load, refused
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import TextInput


class Words:
    """A tokenizer of whole words: a word's id is its length."""

    model_input_names = ("input_ids", "attention_mask")

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        ids = torch.zeros(len(texts), max_length, dtype=torch.int64)
        for i, text in enumerate(texts):
            for j, word in enumerate(text.split()[:max_length]):
                ids[i, j] = min(len(word), 9)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def text_source(classes=None):
    text = TextInput(Words(), ("input_ids", "attention_mask"), 12)
    return SourceModel(Tokens().eval(), text=text, vocabulary=10, classes=classes or {})


def write(path, rows, columns=("body", "stars")):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return path


@pytest.fixture
def reviews(tmp_path):
    """Label "good" where the first word has four letters, "bad" where it has three."""
    rows = [
        (f"{'good' if i % 3 else 'bad'} film, {'very ' * i}", "good" if i % 3 else "bad") for i in range(30)
    ]
    return write(tmp_path / "reviews.csv", rows)


def test_a_table_of_texts(reviews):
    splits = load(f"csv:{reviews},text=body,label=stars,max_length=5", text_source())
    for loader in (splits.train, splits.search, splits.report):
        for inputs, labels in loader:
            assert inputs["input_ids"].shape == (len(labels), 5)
            assert torch.equal(inputs["input_ids"][:, 0] - 3, labels)  # bad is 0, good is 1
    assert splits.example["attention_mask"].shape == (2, 5)
    known = load(f"csv:{reviews},text=body,label=stars", text_source({"good": 0, "bad": 1}))
    inputs, labels = next(iter(known.train))
    assert torch.equal(4 - inputs["input_ids"][:, 0], labels)
    assert inputs["input_ids"].shape[1] == 12  # all that the model takes, at most 128


def test_texts_that_are_twice_there_are_in_one_split(tmp_path):
    path = write(tmp_path / "a.csv", [(f"word {'x ' * (i % 9)}", i % 2) for i in range(200)])
    splits = load(f"csv:{path},text=body,label=stars,batch=500,max_length=10", text_source())
    lengths = [
        {(int(mask.sum()), int(label)) for mask, label in zip(inputs["attention_mask"], labels, strict=True)}
        for loader in (splits.train, splits.search, splits.report)
        for inputs, labels in loader
    ]
    assert not lengths[0] & lengths[1] | lengths[1] & lengths[2] | lengths[0] & lengths[2]


def test_a_column_says_the_split_and_a_folder_has_files(tmp_path):
    rows = [("good film", i % 2, name) for name in ("train", "val", "test") for i in range(4)]
    (tmp_path / "one").mkdir()
    path = write(tmp_path / "one" / "a.csv", rows, ("text", "label", "part"))
    splits = load(f"csv:{path},split=part", text_source())
    assert [len(next(iter(loader))[1]) for loader in (splits.train, splits.search, splits.report)] == [
        4,
        4,
        4,
    ]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", [(f"good {'x ' * i}", i % 2) for i in range(10)], ("text", "label"))
    splits = load(f"csv:{tmp_path}", text_source())
    assert [len(next(iter(loader))[1]) for loader in (splits.train, splits.search, splits.report)] == [
        8,
        2,
        10,
    ]


def test_tabs_and_long_texts_and_no_labels(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tother\n" + "".join(f"{'x' * 200_000} {i}\t1\n" for i in range(10)))
    limit = csv.field_size_limit()
    batch = next(iter(load(f"csv:{tmp_path / 'a.tsv'}", text_source()).train))
    assert batch["input_ids"].shape == (6, 12)
    assert csv.field_size_limit() == limit


def test_tables_that_do_not_fit(reviews, tmp_path):
    text = f"csv:{reviews},text=body,label=stars"
    plain = SourceModel(Tokens().eval())
    refused(f"csv:{tmp_path / 'none.csv'}", text_source(), "no file .*none.csv")
    (tmp_path / "hollow").mkdir()
    refused(f"csv:{tmp_path / 'hollow'}", text_source(), "no train.csv in .*hollow")
    refused(f"csv:{reviews}", text_source(), r"has no column 'text'; it has body, stars. Say text=COLUMN")
    message = r"has no column 'star' \(did you mean 'stars'\?\); it has body, stars. Say label=COLUMN"
    refused(f"csv:{reviews},text=body,label=star", text_source(), message)
    refused(f"{text},max_length=13", text_source(), "max_length: the model takes at most 12 tokens, got 13")
    refused(
        text, plain, r"does not say how it takes text; name a tokenizer \(tokenizer=DIR\), or give tokenized"
    )
    refused(text, replace(plain, fault="MODEL x: no tokenizer in y"), "MODEL x: no tokenizer in y")
    write(tmp_path / "three.csv", [(f"good {i}", "abc"[i % 3]) for i in range(9)])
    message = r"expected 2 classes because the model has 2 outputs, got 3 \(a, b, c\)"
    refused(f"csv:{tmp_path / 'three.csv'},text=body,label=stars", text_source(), message)
    write(tmp_path / "short.csv", [("good", "1"), ("bad",)])
    refused(
        f"csv:{tmp_path / 'short.csv'},text=body,label=stars", text_source(), "line 3: expected 2 columns"
    )
    (tmp_path / "latin.csv").write_bytes(b"body,stars\nsch\xf6n,1\n")
    refused(
        f"csv:{tmp_path / 'latin.csv'},text=body,label=stars",
        text_source(),
        "latin.csv cannot be read: 'utf-8'",
    )


def test_ratings_to_be_predicted(tmp_path):
    from offramp.tasks.regression import Regression

    path = write(tmp_path / "a.csv", [(f"good {'x ' * i}", i) for i in range(10)])
    splits = load(f"csv:{path},text=body,label=stars", text_source(), task=Regression(scale=1.0))
    inputs, labels = next(iter(splits.train))
    torch.testing.assert_close(inputs["attention_mask"].sum(1) - 1.0, labels)


@pytest.mark.parametrize("kinds", [("1", "0"), ("good", "bad")])
def test_a_report_set_without_labels(tmp_path, kinds):
    rows = [(f"text {i}", kinds[i % 2]) for i in range(12)]
    write(tmp_path / "train.csv", rows, ("text", "label"))
    write(tmp_path / "val.csv", rows[:6], ("text", "label"))
    write(tmp_path / "test.csv", [("three",), ("four",)], ("text",))
    source = text_source({"good": 0, "bad": 1})
    splits = load(f"csv:{tmp_path}", source)
    assert [len(labels) for _, labels in splits.train] == [12]
    assert [len(labels) for _, labels in splits.search] == [6]
    (inputs,) = splits.report
    assert inputs["input_ids"].shape == (2, 12)
