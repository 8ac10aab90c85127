"""What the page shows: the demo's network exported for the browser, and fifty digits it was not trained on.

    offramp demo --out offramp-demo
    python examples/browser/make_model.py offramp-demo/artifact

Writes ``model/`` (a graph per span and exit), ``model-single/`` (one graph) and ``digits.json`` beside the
page. Needs ``offramp[demo,onnx]``.
"""

import argparse
import json
from pathlib import Path

import offramp
from offramp.cli.demo import digit_splits
from offramp.cli.digits import DigitsResNet, load_digits
from offramp.export.onnx import to_onnx
from offramp.export.onnx_single import to_onnx_single

HERE = Path(__file__).parent
COUNT = 50
CLASSES = [str(digit) for digit in range(10)]


def run(artifact: Path, out: Path = HERE, seed: int = 0) -> None:
    """Export an artifact of ``offramp demo`` and write the first digits of its report split.

    Args:
        artifact: folder that the demo wrote.
        out: folder of the page.
        seed: that the demo was run with.
    """
    net, frontier, costs = offramp.load(artifact, DigitsResNet(), restore_backbone=True)
    to_onnx(net, frontier, costs, out / "model", classes=CLASSES)
    to_onnx_single(net, frontier, costs, out / "model-single", classes=CLASSES)
    images, labels = next(iter(digit_splits(load_digits(seed), seed).report))
    digits = {"images": images[:COUNT].flatten(1).tolist(), "labels": labels[:COUNT].tolist()}
    (out / "digits.json").write_text(json.dumps(digits), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, help="folder that `offramp demo` wrote")
    run(parser.parse_args().artifact)
    print(f"wrote {HERE}; next: npm ci --ignore-scripts --omit=dev && python -m http.server --bind 127.0.0.1")
