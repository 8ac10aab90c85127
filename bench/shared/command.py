"""Command lines of the benchmarks: the parts of a folder, parsers, options that several scripts take."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path


def run(folder: str, parts: Mapping[str, str], default: str | None = None) -> None:
    """Run the part of a benchmark that the first argument names, or the default part.

    Args:
        folder: below ``bench``.
        parts: name on the command line -> module of the folder, whose ``main`` parses ``sys.argv``.
        default: part for a command line that names none.
    """
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    command = f"python bench/{folder}"
    listed = f"parts: {', '.join(parts)}"
    if part in parts:
        sys.argv[:2] = [f"{command} {part}"]
    elif default is None:
        print(f"usage: {command} PART [options]\n\n{listed}; --help after a part lists its options")
        raise SystemExit(0 if part in ("-h", "--help") else 2)
    else:
        part, sys.argv[0] = default, command
        if len(parts) > 1 and {"-h", "--help"} & set(sys.argv):
            print(f"{listed}; without one: {default}. `{command} PART --help` lists the options of one.\n")
    importlib.import_module(f"bench.{folder}.{parts[part]}").main()


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help starts with the docstring of the script."""
    return argparse.ArgumentParser(
        prog=sys.argv[0], description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_threads(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """``--threads``: of PyTorch; as many as it takes by itself without a default."""
    import torch

    def use(text: str) -> int:
        torch.set_num_threads(int(text))
        return int(text)

    default = torch.get_num_threads() if default is None else default
    parser.add_argument("--threads", type=use, default=str(default), help="of PyTorch")


def add_fashion(parser: argparse.ArgumentParser, backbones: bool = True) -> None:
    """``--data`` and ``--backbones``: where Fashion-MNIST lies and the residual networks trained on it."""
    from bench.fashion_mnist.fashion import DEFAULT_FOLDER

    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="folder of Fashion-MNIST")
    if backbones:
        told = "folder of fashion_resnet*.safetensors"
        parser.add_argument("--backbones", type=Path, required=True, help=told)
