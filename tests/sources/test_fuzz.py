"""Readers given files at random: an ``InputError`` or samples, never anything else, a hang or much memory.

The long version takes 20,000 inputs for each reader.
"""

import io
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from data_files import Image, Tokens, Words, images_for, load, to_tensor
from offramp.errors import ArtifactError, InputError
from offramp.sources.image_folders import load_images
from offramp.sources.models import SourceModel
from offramp.sources.preprocessing import TextInput
from offramp.sources.summary import DataSummary

SHORT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
LONG = settings(SHORT, max_examples=20_000)
MOST_SECONDS, MOST_MEGABYTES = 20, 2000  # a small file may hold 179 million pixels, what Pillow allows


def fuzzed(check, inputs):
    """A short test and a long one of the same function of one input."""

    def run(value):
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        check(value)
        assert time.monotonic() - started < MOST_SECONDS
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown / 1024 < MOST_MEGABYTES

    return SHORT(given(inputs)(run)), pytest.mark.long(LONG(given(inputs)(run)))


def read(text, source, task="classification"):
    """All batches of the DATA, or an ``InputError``."""
    try:
        splits = load(text, source, task)
        for loader in (splits.train, splits.search, splits.report):
            list(loader or ())
        DataSummary.from_dict(splits.summary.to_dict())
        assert all(fact.isprintable() for fact in splits.summary.facts().values())
    except InputError:
        return


def mutated(files):
    """One of the files, with some bytes changed, a piece cut out or put in."""
    edit = st.tuples(
        st.integers(0, 4000), st.sampled_from(("flip", "cut", "insert", "end")), st.binary(max_size=6)
    )
    return st.tuples(st.sampled_from(files), st.lists(edit, min_size=1, max_size=4)).map(apply)


def apply(choice):
    content = bytearray(choice[0])
    for place, what, piece in choice[1]:
        at = place % (len(content) + 1)
        if what == "flip":
            content[at : at + len(piece)] = bytes(a ^ b for a, b in zip(content[at:], piece, strict=False))
        elif what == "cut":
            del content[at : at + 1 + len(piece) * 7]
        elif what == "insert":
            content[at:at] = piece
        else:
            del content[at:]
    return bytes(content)


def npz_files():
    random = np.random.default_rng(0)
    x, y = random.random((12, 3, 4, 4)).astype(np.float32), np.arange(12) % 3
    found = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (
            {"x": x, "y": y},
            {"X_train": x, "y_train": y.astype("S"), "x_val": x, "y_val": y.astype("S")},
        ):
            stream = io.BytesIO()
            save(stream, **arrays)
            found.append(stream.getvalue())
    return found


def check_npz(content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.npz").write_bytes(content)
        read(f"npz:{folder}/a.npz", images_for())


def members(entry):
    """An archive of one array whose header is as drawn: the archive's own checksum is right."""
    header, content, extra = entry
    text = (header + "\n").encode()
    array = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", array)
        archive.writestr(extra, array)
    return stream.getvalue()


SHAPES = st.lists(st.one_of(st.integers(-2, 12), st.sampled_from((2**31, 2**63, 10**30))), max_size=4)
DTYPES = st.sampled_from(
    ("<f4", ">f8", "<f16", "|u1", "<u2", "<u8", "|S3", "<U2", "|O", "|V4", "<c8", "<M8[s]", "|b1", "<U0")
)
HEADERS = st.one_of(
    st.tuples(DTYPES, st.booleans(), SHAPES).map(
        lambda it: f"{{'descr': '{it[0]}', 'fortran_order': {it[1]}, 'shape': {tuple(it[2])}}}"
    ),
    st.text(max_size=60),
)
NAMES = st.sampled_from(("y.npy", "train_x.npy", "X.npy", "a.txt", "labels.npy", ".npy", "y", "\u00e9.npy"))

test_npz, test_npz_long = fuzzed(check_npz, mutated(npz_files()))
test_members, test_members_long = fuzzed(
    check_npz, st.tuples(HEADERS, st.binary(max_size=200), NAMES).map(members)
)

CELLS = st.one_of(
    st.sampled_from(
        (
            "text",
            "label",
            "good",
            "bad",
            "1",
            "0",
            "1.0",
            "nan",
            '"',
            "",
            " ",
            "\ufeff",
            "\x00",
            "9" * 40,
            "a\nb",
        )
    ),
    st.text(max_size=8),
)
TABLES = st.tuples(
    st.sampled_from((",", ";", "\t", "|", " ")),
    st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=12),
    st.sampled_from(("utf-8", "utf-16", "latin-1", "utf-32")),
    st.sampled_from(("\n", "\r\n", "\r", "")),
    st.booleans(),
)


def check_table(table):
    delimiter, rows, encoding, end, headed = table
    rows = [["text", "label"], *rows] if headed else rows
    content = "".join(delimiter.join(row) + end for row in rows).encode(encoding, "replace")
    check_table_bytes(content)


def check_table_bytes(content):
    source = SourceModel(Tokens().eval(), text=TextInput(Words(), ("input_ids", "attention_mask"), 12))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.csv", "a.tsv"):
            (Path(folder) / name).write_bytes(content)
            read(f"csv:{folder}/{name}", source)


GOOD = b"text,label\n" + b"".join(b'"good, %d",%d\n' % (i, i % 2) for i in range(20))

test_table, test_table_long = fuzzed(check_table, TABLES)
test_table_bytes, test_table_bytes_long = fuzzed(
    check_table_bytes, mutated([GOOD, GOOD.replace(b",", b"\t"), GOOD.decode().encode("utf-16")])
)


def image_files():
    found = []
    random = np.random.default_rng(0)
    for kind, mode in (
        ("png", "RGB"), ("png", "P"), ("png", "LA"), ("jpeg", "CMYK"), ("gif", "P"), ("tiff", "RGB"),
        ("ppm", "L"), ("webp", "RGB"), ("bmp", "RGB"), ("tga", "RGB"),
    ):  # fmt: skip
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (6, 5, 3), np.uint8)).convert(mode).save(stream, kind)
        found.append(stream.getvalue())
    for dtype in (np.uint16, np.float32):
        stream = io.BytesIO()
        Image.fromarray(random.random((6, 5)).astype(np.float32).astype(dtype)).save(stream, "tiff")
        found.append(stream.getvalue())
    return found


@pytest.mark.filterwarnings("ignore")  # Pillow's own, on what is odd about a file
def check_image(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content)
        try:
            values = load_images(to_tensor, "RGB", None, torch.float32, [str(path)])
        except InputError:
            return
        assert values.shape == (1, 3, 4, 4)


test_image, test_image_long = (
    pytest.mark.filterwarnings("ignore")(test) for test in fuzzed(check_image, mutated(image_files()))
)

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
)
FIELDS = st.fixed_dictionaries(
    dict.fromkeys(("model", "data", "matched", "inputs", "splits", "classes", "notes"), JSON)
)


def check_summary(document):
    try:
        found = DataSummary.from_dict(document)
    except ArtifactError:
        return
    assert found.to_dict() == document
    found.facts()


test_summary, test_summary_long = fuzzed(check_summary, st.one_of(JSON, FIELDS))
