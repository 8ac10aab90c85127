"""The page of ``examples/browser`` in headless Chromium: answers are ONNX Runtime's, the slider works."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from offramp import ExitChoice, ExitConfig, TrainConfig

pytest.importorskip("onnxscript", reason="exporting needs the extra onnx")
pytest.importorskip("onnxruntime", reason="running exports needs the extra onnx")

from offramp.export.ort import OrtEngine, OrtSingle

PAGE = Path(__file__).parents[2] / "examples" / "browser"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CLOSE = 1e-4  # confidences this close to a threshold may fall on either side in another runtime
COUNT = 50


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if found is None:
        missing.append("chromium")
    if missing:
        pytest.skip(f"the page is tested with {', '.join(missing)}: apt-get install nodejs npm chromium")
    return str(found)


@pytest.fixture(scope="module")
def folder(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with a small network, ONNX Runtime Web, and exports that must be refused."""
    page = tmp_path_factory.mktemp("browser") / "page"
    left_out = shutil.ignore_patterns("node_modules", "model", "model-single", "digits.json")
    shutil.copytree(PAGE, page, ignore=left_out)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(install, cwd=page, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm ci did not succeed; it needs the npm registry: {installed.stderr[-500:]}")
    make_model().run(artifact(page.parent / "artifact"), page)
    for name, change in REFUSED.items():
        shutil.copytree(page / "model", page / name)
        change(page / name)
    return page


def artifact(path: Path) -> Path:
    """What ``offramp demo`` saves, from a network trained for seconds."""
    from offramp.cli.digits import augmented, batches, load_digits, train_backbone
    from offramp.pipeline import BuildConfig, build
    from offramp.sources.splits import Splits

    digits = load_digits()
    model = train_backbone(digits.train, epochs=8)
    train, search = augmented(digits.train, 2, 1), augmented(digits.search, 2, 2)
    config = BuildConfig(
        heads=("conv",), cuts=("stem", "layer1", "layer2"), max_exits=2, train=TrainConfig(epochs=12)
    )
    splits = Splits(batches(train), batches(search), None, train[0][:2])
    built = build(model, splits, config, progress=False)
    offramp.save(path, built.net, built.frontier, built.costs, include_backbone=True)
    return path


def make_model() -> Any:
    spec = importlib.util.spec_from_file_location("make_model", PAGE / "make_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_a_later_version(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"version": 2}))


def with_a_changed_threshold(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    threshold = f'"threshold": {json.loads(text)["frontier"]["configs"][0]["choices"][0]["threshold"]}'
    (folder / "manifest.json").write_text(text.replace(threshold, '"threshold": 0.25'))


def with_changed_weights(folder: Path) -> None:
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "weights.bin").write_bytes(weights)


def without_a_graph(folder: Path) -> None:
    next(folder.glob("exit-*.onnx")).unlink()


def of_another_kind(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"kind": "executorch"}))


REFUSED: dict[str, Callable[[Path], None]] = {
    "later": of_a_later_version,
    "threshold": with_a_changed_threshold,
    "weights": with_changed_weights,
    "incomplete": without_a_graph,
    "kind": of_another_kind,
}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # a page asks for all files of an export at once


@pytest.fixture(scope="module")
def seen(browser: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What the page showed: see ``drive.mjs``."""
    server = Server(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        pictures = folder.parent / "pictures"
        url = f"http://127.0.0.1:{server.server_port}/"
        command = ["node", "drive.mjs", url, browser, str(pictures), *REFUSED, "nothing-here"]
        driven = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
        assert driven.returncode == 0, driven.stderr
        yield json.loads(driven.stdout)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pictures_of(folder: Path) -> Any:
    digits = json.loads((folder / "digits.json").read_text())
    assert len(digits["labels"]) == COUNT
    return np.asarray(digits["images"], np.float32).reshape(COUNT, 1, 14, 14), np.asarray(digits["labels"])


def same_as_onnx_runtime(engine: OrtEngine | OrtSingle, folder: Path, shown: dict[str, Any]) -> None:
    configs = [*engine.frontier, ExitConfig()]
    config, (x, labels) = configs[shown["index"]], pictures_of(folder)
    clear = np.ones(COUNT, bool)
    for choice in config.choices:
        engine.use(ExitConfig([ExitChoice(choice.position, choice.head, -1.0)]))  # all leave there
        clear &= np.abs(engine(x).confidence - np.float32(choice.threshold)) > CLOSE
    assert clear.sum() >= 0.9 * COUNT
    engine.use(config)
    engine.reset_stats()
    wanted = engine(x)
    answers, position = wanted.outputs.argmax(1), np.asarray(shown["position"])
    np.testing.assert_array_equal(position[clear], wanted.position[clear])
    np.testing.assert_array_equal(np.asarray(shown["answer"])[clear], answers[clear])
    np.testing.assert_allclose(np.asarray(shown["confidence"])[clear], wanted.confidence[clear], atol=CLOSE)
    assert shown["meanPosition"] == pytest.approx(position.mean(), abs=0.0051)
    assert shown["right"] == (np.asarray(shown["answer"]) == labels).sum()
    assert dict(shown["left"]) == {at: (position == at).sum() for at, _ in shown["left"]}
    if clear.all():
        stats = engine.stats()
        assert shown["cost"] == pytest.approx(stats.macs / stats.full_macs, abs=0.00051)


@pytest.mark.parametrize("setting", ["cheapest", "full", "again", "dragged", "running"])
def test_answers_are_those_of_onnx_runtime(seen: dict[str, Any], folder: Path, setting: str) -> None:
    same_as_onnx_runtime(OrtEngine(folder / "model", threads=1), folder, seen[setting])


@pytest.mark.parametrize("setting", ["cheapest", "full"])
def test_the_single_graph_answers_likewise(seen: dict[str, Any], folder: Path, setting: str) -> None:
    same_as_onnx_runtime(OrtSingle(folder / "model-single", threads=1), folder, seen["single"][setting])
    assert seen["single"][setting]["position"] == seen[setting]["position"]


def test_the_slider_lowers_mean_exit_position_and_cost(seen: dict[str, Any]) -> None:
    cheap, middle, full = seen["cheapest"], seen["dragged"], seen["full"]
    assert 0 < middle["index"] < full["index"]
    assert cheap["meanPosition"] < middle["meanPosition"] < full["meanPosition"]
    assert cheap["cost"] < middle["cost"] < full["cost"] == 1
    assert seen["again"]["position"] == cheap["position"]
    assert seen["running"]["index"] == middle["index"] - 3


def test_the_slider_lowers_the_time(seen: dict[str, Any]) -> None:
    # The one test that a clock decides, as time is what the page is for. The cheapest configuration costs a
    # quarter; figures are medians of passes that take turns with the full model, the better of two counts.
    def share(setting: str) -> float:
        return float(seen[setting]["milliseconds"] / seen[setting]["fullMilliseconds"])

    assert min(share("cheapest"), share("again")) < min(1.0, share("full"))


def test_a_drawing_is_answered(seen: dict[str, Any]) -> None:
    assert seen["drawn"][0] in "0123456789"
    assert "left at" in seen["drawn"]


def test_the_page_is_quiet_fits_a_phone_and_asks_nobody_else(seen: dict[str, Any]) -> None:
    assert seen["noise"] == []
    assert seen["overflow"] <= 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing-here", "found no manifest.json (HTTP 404); make one with: python make_model.py"),
        ("later", "version 2 of the export, this page reads 1"),
        ("threshold", "manifest.json does not match its checksum"),
        ("weights", "weights.bin does not match its checksum"),
        ("incomplete", "is missing (HTTP 404); copy the whole folder again"),
        ("ort.wasm.min.mjs", "Install it in this folder with: npm ci --ignore-scripts --omit=dev"),
        ("ort-wasm-simd-threaded.wasm", "Install it in this folder with: npm ci --ignore-scripts --omit=dev"),
        ("digits.json", "make it with: python make_model.py ARTIFACT"),
        ("kind", "expected an export of kind onnx or onnx-single, got executorch"),
    ],
)
def test_what_cannot_be_run_is_said(seen: dict[str, Any], name: str, message: str) -> None:
    assert message in seen["refused"][name]
