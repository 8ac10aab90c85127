"""Tables of texts: columns, splits, labels, tokenizing, and what is refused."""

import csv
import os
from dataclasses import replace

import pytest
import torch

from data_files import Tokens, Words, load, refused
from offramp.sources import DataWarning
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import TextInput


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


def text_file(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


ROWS = [(f"{'good' if i % 2 else 'bad'} film {i}", "yes" if i % 2 else "no") for i in range(20)]


def table(delimiter=",", rows=ROWS, columns=("text", "label"), end="\n"):
    return "".join(delimiter.join(map(str, row)) + end for row in (columns, *rows))


def read(path, options="", classes=None, task="classification"):
    """(first word's length, label) of every sample, and the splits."""
    splits = load(f"csv:{path}{options}", text_source(classes), task)
    found = [
        (int(ids[0]), label.item())
        for loader in (splits.train, splits.search, splits.report)
        for inputs, labels in loader
        for ids, label in zip(inputs["input_ids"], labels, strict=True)
    ]
    return sorted(found), splits


ALL = sorted((4, 1) if i % 2 else (3, 0) for i in range(20))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path, delimiter):
    path = text_file(tmp_path / "a.csv", table(delimiter))
    assert read(path)[0] == ALL
    quoted = text_file(tmp_path / "b.csv", table(delimiter, [(f'"{a}, {delimiter} so"', b) for a, b in ROWS]))
    assert read(quoted)[0] == ALL


@pytest.mark.parametrize(
    ("given", "delimiter"), [("tab", "\t"), ("\\t", "\t"), (",", ","), ("^", "^"), ("space", " ")]
)
def test_the_delimiter_is_given(tmp_path, given, delimiter):
    rows = [(text.replace(" ", "_"), label) for text, label in ROWS]
    path = text_file(tmp_path / "a.csv", table(delimiter, rows))
    assert len(read(path, f",delimiter={given}")[0]) == 20
    refused(
        f"csv:{path},delimiter=::", text_source(), "delimiter: expected one character, or tab, .*; got '::'"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends(tmp_path, encoding, end):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = text_file(tmp_path / "a.csv", mark + table(end=end), encoding)
    assert read(path)[0] == ALL


def test_empty_rows_are_left_out(tmp_path):
    path = text_file(tmp_path / "a.csv", "\n\n" + table(end="\n\n") + "\n \n".strip(" "))
    assert read(path)[0] == ALL


def test_quotes_in_tsv_are_ordinary_characters(tmp_path):
    rows = [(f'"{text}' if i % 3 else text, label) for i, (text, label) in enumerate(ROWS)]
    found, splits = read(text_file(tmp_path / "a.tsv", table("\t", rows)))
    assert [label for _, label in found].count(1) == 10
    assert sum(splits.summary.splits.values()) == 20
    spread = [(f'"{text}\tso\nand so"', label) for text, label in ROWS]
    path = text_file(tmp_path / "b.TSV", table("\t", spread))
    assert read(path, ",quotes=true")[0] == ALL
    path = text_file(tmp_path / "c.tsv", table("\t", [(f'"{a}\tso"', b) for a, b in ROWS]))
    assert read(path, ",quotes=true")[0] == ALL
    refused(f"csv:{path}", text_source(), "line 2: expected 2 columns, got 3; quotes=true if it has quotes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('text,label\n"good,1\nbad,0\n', r"a quote \(\"\) is opened and never closed before its end"),
        (
            "text,label\ngood, very,1\nbad,0\n",
            "line 2: expected 2 columns, got 3; put quotes around texts with",
        ),
        ("text,label\ngood,1\nbad\n", "line 3: expected 2 columns, got 1"),
        ("text,label\ngood,1\nbad,\n", "line 3: no label in column 'label'; leave the row out"),
        ("text,text,label\na,b,1\n", "two columns 'text'; rename one"),
        ("words\ngood\n", r"no column 'text'; it has words, and no delimiter was found in it but ','"),
        ("text;label\n", "no rows in .*a.csv"),
        ("", "has no column 'text'; it has none"),
        (
            "text,label\na,0.5\nb,1.5\n",
            "column 'label': expected classes, got the number 0.5; .* --task regression",
        ),
        (
            "text,label\n" + "".join(f"a{i},1\nb{i},5\n" for i in range(9)),
            "expected labels 0 to 1 because the model has 2 outputs, got 1 to 5",
        ),
        ("text,label\na," + "9" * 31 + "\n", "expected classes, got the number 9999"),
        ("text,class,target\na,1,2\n", "columns class, target could all be the label; say label=COLUMN"),
    ],
)
def test_tables_with_a_fault_are_one_message(tmp_path, text, message):
    path = text_file(tmp_path / "a.csv", text)
    refused(f"csv:{path}", text_source(), message)


@pytest.mark.parametrize("name", ["sentiment", "category", "target", "class", "Label", " LABELS ", "intent"])
def test_columns_that_are_usually_the_label(tmp_path, name):
    path = text_file(
        tmp_path / "a.csv", table(columns=("id", name, "Review"), rows=[(0, b, a) for a, b in ROWS])
    )
    found, splits = read(path)
    assert found == ALL
    assert splits.summary.notes == (f"texts in column 'Review', labels in column {name.strip()!r}",)


def test_a_label_of_another_name_is_pointed_at(tmp_path):
    path = text_file(tmp_path / "a.csv", table(columns=("text", "verdict")))
    splits = load(f"csv:{path}", text_source())
    assert splits.label_hint == "the table also has verdict: say label=COLUMN, if one of these is it"


def test_float_labels_and_names_in_another_case(tmp_path):
    floats = [(text, float(label == "yes")) for text, label in ROWS]
    assert read(text_file(tmp_path / "a.csv", table(rows=floats)))[0] == ALL
    known = {"no": 0, "yes": 1}
    shouted = [(text, f" {label.upper()}") for text, label in ROWS]
    found, splits = read(text_file(tmp_path / "b.csv", table(rows=shouted)), classes=known)
    assert found == ALL
    assert splits.summary.matched == "the model's own names, whatever their case"
    stars = [(text, 2 if label == "yes" else 1) for text, label in ROWS]
    assert read(text_file(tmp_path / "c.csv", table(rows=stars)), classes={"1": 0, "2": 1})[0] == ALL
    refused(f"csv:{tmp_path / 'b.csv'}", text_source({"no": 0, "maybe": 1}), "no class called 'YES'")


class Pairs(Words):
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def __call__(self, texts, pairs=None, **options):
        tokens = super().__call__(texts, **options)
        types = torch.zeros_like(tokens["input_ids"])
        if pairs is not None:
            second = super().__call__(pairs, **options)["input_ids"]
            types[:, 6:] = 1
            tokens["input_ids"][:, 6:] = second[:, :6]
        return {**tokens, "token_type_ids": types}


class PairModel(Tokens):
    def forward(self, input_ids, attention_mask, token_type_ids=None):
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("options", ["text=a/b", "text=a,pair=b"])
def test_pairs_of_texts(tmp_path, options):
    rows = [(text, "longer", label) for text, label in ROWS]
    path = text_file(tmp_path / "a.csv", table(rows=rows, columns=("a", "b", "label")))
    text = TextInput(Pairs(), ("input_ids", "attention_mask"), 12)
    source = SourceModel(PairModel().eval(), text=text, vocabulary=10)
    inputs, _ = next(iter(load(f"csv:{path},{options}", source).train))
    assert inputs["token_type_ids"][0].tolist() == [0] * 6 + [1] * 6
    assert (inputs["input_ids"][:, 6] == 6).all()
    single, _ = next(iter(load(f"csv:{path},text=a", source).train))
    assert set(single) == {"input_ids", "attention_mask"}
    refused(f"csv:{path},text=a/b/c", source, "text: expected one column, or two with '/' between")
    refused(f"csv:{path},text=a,pair=c", source, "has no column 'c'.*Say pair=COLUMN")
    refused(f"csv:{path}", source, "has no column 'text'; it has a, b, label")


def test_a_column_name_with_a_slash(tmp_path):
    path = text_file(tmp_path / "a.csv", table(columns=("a/b", "label")))
    assert read(path, ",text=a/b")[0] == ALL


def test_tables_of_sets_in_any_case(tmp_path):
    for name in ("Train.csv", "HOLDOUT.tsv"):
        text_file(tmp_path / name, table("\t" if name.endswith("tsv") else ","))
    text_file(tmp_path / "extra.csv", table())
    with pytest.warns(DataWarning, match="1 file is not used, called neither train, val nor test: extra.csv"):
        splits = load(f"csv:{tmp_path}", text_source())
    assert splits.summary.splits == {"train": 16, "search": 4, "report": 20}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            ("train", "fold1"),
            "expected sets called train, search, report, training, .*got 'fold1'; rename it",
        ),
        (("train", ""), "column 'part' is empty; expected train, val or test"),
        (("Train", "train"), "both 'Train' and 'train' would be the train split"),
    ],
)
def test_a_split_column_with_other_words(tmp_path, parts, message):
    rows = [(text, label, parts[i % 2]) for i, (text, label) in enumerate(ROWS)]
    path = text_file(tmp_path / "a.csv", table(rows=rows, columns=("text", "label", "part")))
    refused(f"csv:{path},split=part", text_source(), message)


def test_pipes_and_folders_are_no_tables(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    refused(f"csv:{tmp_path / 'a.csv'}", text_source(), "it is a folder, a pipe or a device; name a file")
    refused(f"npz:{tmp_path}", text_source(), "it is a folder, a pipe or a device; name a file")
