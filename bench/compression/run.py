"""Exits with other compression, on Fashion-MNIST: int8 linear layers of a transformer, a pruned ResNet-56.

For each kind the full model, compressed alone, exits alone and both are compared at the same allowed drop in
accuracy. Backbones come from the part ``backbones``, artifacts are kept in the work folder.

    python bench/compression --work DIR --resnet DIR                 # trains heads first, if need be
    python bench/compression --work DIR --resnet DIR --times-only    # artifacts must be there

writes OUT/compression.json and OUT/compression.png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.compression import backbones
from bench.compression.compare import BOTH, EXITS, FULL, SMALL, compare
from bench.compression.networks import Setting, in_seconds, load, make
from bench.compression.timing import full_batches, with_seconds
from bench.fashion_mnist.fashion import Fashion, load_fashion
from bench.shared import command, results
from offramp import keep_memory

KINDS = {"int8": ("transformer", "transformer-int8"), "pruned": ("resnet56", "resnet56-pruned")}
TIMED, ROUNDS = {1: 400, 64: None}, 3
"""Test images timed by batch size, all where None; rounds at batch 1, at 64 each batch is timed once."""

Tables = dict[str, list[dict[str, Any]]]
"""By what was chosen, "macs", "1" or "64" -> rows."""


def one_kind(
    names: Sequence[str], work: Path, resnet: Path, data: Fashion, timed: Mapping[int, int | None] = TIMED
) -> Tables:
    """The tables of one kind of compression: chosen by MACs, and by seconds at each batch size.

    Args:
        names: of the uncompressed network and the compressed one.
        work: folder of backbones and artifacts.
        resnet: folder of the uncompressed ResNet-56.
        data: costs are measured on images held out, networks are timed on the test images.
        timed: how many of them, by batch size; None takes all.
    """
    full, small = (load(work / name, backbones.load(name, work, resnet)) for name in names)
    tables = {"macs": compare(full, small)}
    for size, most in timed.items():
        priced = [in_seconds(made, size, data.held_out[0][:size]) for made in (full, small)]
        batches = full_batches(data.test, size, most)
        tables[str(size)] = with_seconds(compare(*priced), *priced, batches, ROUNDS if size == 1 else 1)
    return tables


def print_table(kind: str, by: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = {FULL: "full model", SMALL: f"{kind} alone", EXITS: "exits alone", BOTH: f"{kind} + exits"}
    print("\nchosen by MACs" if by == "macs" else f"\nchosen by seconds at batch {by}")
    print(f"{'way':<16}{'allowed':>8}{'on search':>11}{'accuracy':>10}{'drop':>15}{'MACs':>8}{'time':>18}")
    for row in rows:
        allowed = f"{100 * row['allowed']:g}" if "allowed" in row else ""
        start = f"{names[row['way']]:<16}{allowed:>8}"
        if row["config"] is None:
            print(f"{start}  nothing keeps within it")
            continue
        drop = f"{100 * row['drop']:+.2f} ± {100 * row['interval']:.2f}"
        found = f"{100 * row['drop_on_search']:>+11.2f}{row['accuracy']:>10.2%}{drop:>15}{row['macs']:>8.1%}"
        print(start + found + (f"{row['ms']:>8.3f} ms{row['time']:>7.1%}" if "ms" in row else ""))


def write(folder: Path, kind: str, tables: Tables) -> None:
    """Put the tables of one kind into the results and draw them anew; other kinds stay as they are."""
    from bench.compression.picture import draw

    path = folder / "compression.json"
    known = {**results.read(path), kind: tables}
    kinds = {name: known[name] for name in KINDS if name in known}
    results.write(path, kinds)
    draw(kinds, path.with_suffix(".png"))
    print(f"\nwrote {path} and its picture")


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of backbones and artifacts")
    parser.add_argument("--resnet", type=Path, required=True, help="folder of fashion_resnet56.safetensors")
    command.add_fashion(parser, backbones=False)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    parser.add_argument("--kind", choices=tuple(KINDS), nargs="+", default=list(KINDS))
    names = [name for pair in KINDS.values() for name in pair]
    parser.add_argument("--network", choices=names, nargs="+", help="train heads of these only")
    parser.add_argument("--images", type=int, default=Setting.images, help="to train heads on")
    parser.add_argument("--times-only", action="store_true", help="train nothing: artifacts must be there")
    parser.add_argument("--artifacts-only", action="store_true", help="time nothing")
    parser.add_argument("--timed", type=int, help="images to time at batch 64; all without it")
    command.add_threads(parser, 1)
    arguments = parser.parse_args()
    data = load_fashion(arguments.data)
    work, resnet = arguments.work, arguments.resnet
    if not arguments.times_only:
        for name in arguments.network or (name for kind in arguments.kind for name in KINDS[kind]):
            make(work / name, backbones.load(name, work, resnet), data, Setting(images=arguments.images))
    if arguments.artifacts_only:
        return
    keep_memory()
    for kind in arguments.kind:
        tables = one_kind(KINDS[kind], work, resnet, data, {**TIMED, 64: arguments.timed})
        for by, rows in tables.items():
            print_table(kind, by, rows)
        write(arguments.out, kind, tables)
