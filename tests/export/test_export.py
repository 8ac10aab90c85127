"""Exported to ONNX, networks answer as ``Engine`` does, without torch; what is damaged is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import offramp
import small
from exported import CASES, Case, rows, same_as_engine
from offramp import CostTable, ExitChoice, ExitConfig, Expected, Frontier
from offramp.errors import ArtifactError, InputError, MissingExtraError, StorageError
from offramp.export.pieces import pieces
from offramp.export.verify import Check, distance
from offramp.storage.atomic import file_digest
from offramp.storage.folder import MANIFEST, document_digest

pytest.importorskip("onnxscript", reason="exporting needs the extra onnx")
pytest.importorskip("onnxruntime", reason="running exports needs the extra onnx")

from offramp.export.onnx import to_onnx
from offramp.export.onnx_single import to_onnx_single
from offramp.export.ort import OrtEngine, OrtSingle

TOKENS = "answer per token"
SIMPLE = "several labels, learned confidence"
ENGINES = {"onnx": OrtEngine, "onnx-single": OrtSingle}
WRITERS = {"onnx": to_onnx, "onnx-single": to_onnx_single}
QUICK = ("carried mask", SIMPLE)
PAIRS = [
    pytest.param(
        kind, name, id=f"{kind}, {name}", marks=() if kind == "onnx" or name in QUICK else pytest.mark.long
    )
    for kind in WRITERS
    for name in CASES
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of a case's export of a kind, written when it is first asked for."""
    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, kind: str = "onnx") -> Path:
        if (name, kind) not in made:
            case, path = CASES[name](), tmp_path_factory.mktemp("export") / "net"
            WRITERS[kind](case.net, case.frontier, case.costs, path)
            made[name, kind] = path
        return made[name, kind]

    return folder


@pytest.fixture
def damaged(folders: Any, tmp_path: Path) -> Path:
    """A copy of an export, to be spoilt."""
    return Path(shutil.copytree(folders(TOKENS), tmp_path / "copy"))


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_an_exported_network_answers_as_the_engine(folders: Any, name: str, kind: str) -> None:
    case = CASES[name]()
    engine = ENGINES[kind](folders(name, kind), threads=1, prepare=case.frontier)
    left = [same_as_engine(engine, case, config) for config in case.frontier]
    for position, config in zip(left, case.frontier, strict=True):
        assert len(np.unique(position)) == len(config.choices) + 1  # some at every exit, some at none
    assert set(same_as_engine(engine, case, ExitConfig())) == {len(case.net.positions)}
    assert engine.frontier == case.frontier
    assert engine.costs.backbone.tolist() == case.costs.backbone.tolist()
    assert engine.positions == case.net.positions


@pytest.mark.parametrize("kind", WRITERS)
def test_batches_of_any_size_and_counts(folders: Any, kind: str) -> None:
    case = CASES[SIMPLE]()
    config, arrays = case.frontier[0], case.arrays
    engine = ENGINES[kind](folders(SIMPLE, kind), config, threads=1)
    reference = offramp.Engine(case.net, config)
    whole = engine(arrays)
    reference(case.inputs)
    assert vars(engine.stats()) == vars(reference.stats())
    one_by_one = [engine(rows(arrays, slice(i, i + 1))) for i in range(len(whole.position))]
    np.testing.assert_array_equal(np.concatenate([each.position for each in one_by_one]), whole.position)
    together = np.concatenate([each.outputs for each in one_by_one])
    np.testing.assert_allclose(together, whole.outputs, atol=1e-6)
    engine.reset_stats()
    nothing = engine(rows(arrays, slice(0, 0)))
    assert nothing.outputs.shape == (0, 3)
    assert (nothing.position.dtype, nothing.confidence.dtype) == (np.int64, np.float32)
    assert engine.stats().samples == 0
    strided = tuple(np.repeat(value, 2, 0)[::2] for value in arrays)
    np.testing.assert_array_equal(engine(strided).outputs, whole.outputs)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_not_finite_never_leaves_early(folders: Any, kind: str) -> None:
    case = CASES[SIMPLE]()
    choice = case.frontier[0].choices[0]
    everyone = ExitConfig([ExitChoice(choice.position, choice.head, float("-inf"))])
    engine = ENGINES[kind](folders(SIMPLE, kind), everyone, threads=1)
    x, scale = (value[:4].copy() for value in case.arrays)
    x[1] = np.nan
    last, here = len(case.net.positions), case.net.positions.index(choice.position)
    assert engine((x, scale)).position.tolist() == [here, last, here, here]


@pytest.mark.parametrize("kind", WRITERS)
def test_an_infinite_threshold_lets_nobody_leave(folders: Any, kind: str) -> None:
    case = CASES[SIMPLE]()
    choice = case.frontier[0].choices[0]
    engine = ENGINES[kind](folders(SIMPLE, kind), threads=1)
    full = engine(case.arrays)
    engine.use(ExitConfig([ExitChoice(choice.position, choice.head, float("inf"))]))
    nobody = engine(case.arrays)
    np.testing.assert_array_equal(nobody.position, full.position)
    np.testing.assert_allclose(nobody.outputs, full.outputs, atol=1e-6)


def test_a_chain_of_short_spans_answers_as_the_fused_ones(folders: Any) -> None:
    case = CASES["carried mask"]()
    fused, chain = (OrtEngine(folders("carried mask"), threads=1, fuse=each) for each in (True, False))
    assert {(each.start, each.stop) for each in fused.export.fused} >= {(0, len(case.net.positions))}
    for config in (ExitConfig(), *case.frontier):
        fused.use(config)
        chain.use(config)
        a, b = fused(case.arrays), chain(case.arrays)
        np.testing.assert_array_equal(a.position, b.position)
        np.testing.assert_allclose(a.outputs, b.outputs, atol=1e-5)


def test_it_runs_without_torch(folders: Any) -> None:
    np.savez(folders(SIMPLE).parent / "x.npz", *CASES[SIMPLE]().arrays)
    script = (
        "import sys, numpy as np\n"
        "import offramp.export.ort\n"
        "from offramp.export.ort import OrtEngine, OrtSingle\n"
        "x = tuple(np.load(sys.argv[3]).values())\n"
        "for make, folder in zip((OrtEngine, OrtSingle), sys.argv[1:3]):\n"
        "    engine = make(folder, threads=1)\n"
        "    engine.use(engine.frontier.at(max_cost=1.0))\n"
        "    assert len(set(engine(x).position)) == 2\n"
        "print(sorted({'torch', 'onnx', 'onnxscript'} & set(sys.modules)))"
    )
    paths = (folders(SIMPLE), folders(SIMPLE, "onnx-single"), folders(SIMPLE).parent / "x.npz")
    command = [sys.executable, "-c", script, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", WRITERS)
def test_switching_while_another_thread_calls(folders: Any, kind: str) -> None:
    """Each answer is that of one configuration, whole; and both are seen."""
    case = CASES[SIMPLE]()
    engine = ENGINES[kind](folders(SIMPLE, kind), threads=1, prepare=case.frontier)
    arrays, configs = rows(case.arrays, slice(0, 8)), (ExitConfig(), case.frontier[0])
    wanted = []
    for config in configs:
        engine.use(config)
        wanted.append(engine(arrays).position.tolist())
    assert wanted[0] != wanted[1]
    seen, errors, stop = list[list[int]](), list[Exception](), threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                seen.append(engine(arrays).position.tolist())
            except Exception as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not errors and not all(each in seen for each in wanted):
        for config in configs:
            engine.use(config)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(each in wanted for each in seen)


def test_only_what_the_configurations_use_is_written(folders: Any, tmp_path: Path) -> None:
    case = CASES["uneven pooling, a model at the input"]()
    one = Frontier([case.frontier[1]])
    written = to_onnx(case.net, one, case.costs, tmp_path / "one", classes=["a", "b", "c"])
    assert [(each.position, each.head) for each in written.exits] == [(0, case.net.head_names.index("given"))]
    assert [(each.start, each.stop) for each in written.spans] == [(0, 3)]
    assert not written.fused
    engine = OrtEngine(tmp_path / "one", threads=1)
    assert engine.export.signature.classes == ("a", "b", "c")
    same_as_engine(engine, case, one[0])
    with pytest.raises(InputError, match=r"no head 'conv' at 'blocks.0'; it has: none"):
        engine.use(case.frontier[0])
    assert engine.config == one[0]
    everything = {each.name for each in (tmp_path / "one").iterdir()}
    assert everything == {MANIFEST, "weights.bin", "exit-0-3.onnx", "span-0-3.onnx"}


def test_nothing_in_a_folder_tells_where_it_was_made(folders: Any) -> None:
    places = [str(Path(each).parent).encode() for each in (__file__, offramp.__file__, torch.__file__)]
    for kind in WRITERS:
        for file in folders(SIMPLE, kind).iterdir():
            assert not any(place in file.read_bytes() for place in places)


def test_exporting_leaves_everything_as_it_was(tmp_path: Path) -> None:
    net = small.network(small.Vector, heads=("linear",)).train()
    net.backbone.train()
    before, filters = small.weights(net), list(warnings.filters)
    costs = offramp.measure_cost(net)
    to_onnx(net, Frontier([Frontier([_config(net)]).full_model]), costs, tmp_path / "net")
    assert small.same(before, small.weights(net))
    assert warnings.filters == filters
    assert all(module.training for module in (*net.modules(), *net.backbone.modules()))


def _config(net: offramp.ExitNetwork) -> ExitConfig:
    cost = offramp.measure_cost(net).full
    return ExitConfig(expected=offramp.Expected(0.9, cost, 0.9, cost, 10))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            np.zeros((2, 6), np.int64),
            "expected a dict with keys ids, attention_mask, as the model takes",
        ),
        ({"ids": np.zeros((2, 6), np.int64)}, "expected ids, attention_mask; got ids"),
        (
            {"ids": torch.zeros(2, 6), "attention_mask": np.zeros((2, 6), np.int64)},
            "input 'ids': expected a NumPy array, got Tensor; np.asarray makes one",
        ),
        (
            {"ids": np.zeros((2, 5), np.int64), "attention_mask": np.zeros((2, 6), np.int64)},
            r"input 'ids': expected shape \(B, 6\), got \(2, 5\)",
        ),
        (
            {"ids": np.zeros((2, 6), np.int32), "attention_mask": np.zeros((2, 6), np.int64)},
            r"input 'ids': expected int64, got int32; convert with .astype",
        ),
        (
            {"ids": np.zeros((2, 6), np.int64), "attention_mask": np.zeros((3, 6), np.int64)},
            "input 'attention_mask': expected batch size 2 like 'ids', got 3",
        ),
    ],
    ids=["no dict", "missing", "tensor", "shape", "dtype", "batch"],
)
def test_inputs_that_do_not_fit(folders: Any, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrtEngine(folders(TOKENS), threads=1)(inputs)


def test_too_many_inputs_and_a_dict_where_none_is_wanted(folders: Any) -> None:
    engine, (x, scale) = OrtEngine(folders(SIMPLE), threads=1), CASES[SIMPLE]().arrays
    with pytest.raises(InputError, match="inputs: expected 0, 1; got 0, 1, 2"):
        engine((x, scale, x))
    with pytest.raises(InputError, match="expected an array or a tuple, as the model takes; got dict"):
        engine({"0": x, "1": scale})
    with pytest.raises(InputError, match=r"expected an ExitConfig, such as .*; got a str"):
        engine.use("cheap")


def _change(folder: Path, **fields: Any) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(document | fields))


def _resealed(folder: Path, **fields: Any) -> None:
    """Changed by somebody who knows the checksum."""
    document = json.loads((folder / MANIFEST).read_text()) | fields
    document.pop("sha256")
    (folder / MANIFEST).write_text(json.dumps({**document, "sha256": document_digest(document)}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "weights.bin").unlink(), "'weights.bin' is missing; copy the whole folder again"),
        (lambda d: (d / "weights.bin").write_bytes(b"x"), "expected .* bytes, got 1; it is not whole"),
        (
            lambda d: (d / "span-0-1.onnx").write_bytes((d / "span-0-1.onnx").read_bytes()[::-1]),
            "span-0-1.onnx: does not match its checksum; it was changed or damaged, copy it again",
        ),
        (lambda d: _change(d, keyword=False), "does not match its checksum; it was changed, copy the folder"),
        (lambda d: _change(d, version=99), r"version 99 is newer than this release reads \(1\); upgrade"),
        (lambda d: (d / MANIFEST).write_text("{"), "expected an offramp.export document, got text that is"),
        (lambda d: (d / MANIFEST).unlink(), "expected an exported network at .*, found no manifest.json"),
        (lambda d: _resealed(d, kind="onnx-single"), "expected an export of kind 'onnx', got 'onnx-single'"),
        (lambda d: _resealed(d, inputs=[{}]), r"damaged, inputs\[0\].name is missing; export it again"),
        (lambda d: _resealed(d, frontier={}), "expected an offramp.frontier document"),
        (lambda d: _resealed(d, files={"../x": {"bytes": 1}}), r"'\.\./x' is missing"),
        (lambda d: _resealed(d, spans=[]), "damaged, .*its spans do not lead from position 0 to 3"),
    ],
    ids=["gone", "short", "bytes", "manifest", "newer", "no JSON", "none", "kind", "field", "frontier",
         "path", "chain"],
)  # fmt: skip
def test_a_damaged_folder_is_refused(damaged: Path, spoil: Any, message: str) -> None:
    spoil(damaged)
    with pytest.raises(ArtifactError, match=message):
        OrtEngine(damaged, threads=1)


def test_a_file_that_the_runtime_refuses(damaged: Path) -> None:
    (damaged / "span-0-3.onnx").write_bytes(b"no graph")
    files = json.loads((damaged / MANIFEST).read_text())["files"]
    files["span-0-3.onnx"] = {"bytes": 8, "sha256": file_digest(damaged / "span-0-3.onnx")}
    _resealed(damaged, files=files)
    with pytest.raises(ArtifactError, match=r"span-0-3.onnx: ONNX Runtime refuses it .*; export it again"):
        OrtEngine(damaged, threads=1)


def test_an_export_is_replaced_and_nothing_else(damaged: Path, tmp_path: Path) -> None:
    case = CASES[TOKENS]()
    full = Frontier([case.frontier.full_model])
    to_onnx(case.net, full, case.costs, damaged)
    assert not OrtEngine(damaged, threads=1).export.exits
    (damaged / "mine.txt").touch()
    (tmp_path / "file").touch()
    for path, message in (
        (damaged, "holds more than an exported network: mine.txt; choose another folder"),
        (tmp_path / "file", "file is a file; choose another folder"),
        (tmp_path, "exists and is not an exported network; choose another folder"),
    ):
        with pytest.raises(StorageError, match=message):
            to_onnx(case.net, full, case.costs, path)
    assert (damaged / "mine.txt").exists()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    case = CASES[SIMPLE]()
    with pytest.raises(InputError, match="expected a network from attach_exits, got a Linear"):
        to_onnx(nn.Linear(1, 1), case.frontier, case.costs, tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="classes: expected 3 names, one per output, got 2"):
        to_onnx(case.net, case.frontier, case.costs, tmp_path / "a", classes=["x", "y"])
    assert not (tmp_path / "a").exists()


class Bessel(small.Vector):
    """Has an operation that ONNX lacks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.special.bessel_j0(self.b(torch.relu(self.a(x)))))


def test_an_operation_that_onnx_lacks(tmp_path: Path) -> None:
    net = small.network(Bessel, heads=("linear",))
    frontier = Frontier([_config(net)])
    with pytest.raises(InputError, match=r"span-0-3.onnx cannot be written as ONNX: No ONNX function"):
        to_onnx(net, frontier, offramp.measure_cost(net), tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    model = small.model(small.Vector).bfloat16()
    net = offramp.attach_exits(model, torch.randn(2, 6).bfloat16(), heads=("linear",))
    with pytest.raises(InputError, match=r"NumPy has no torch.bfloat16; export the model in float32"):
        to_onnx(net, Frontier([_config(net)]), offramp.measure_cost(net), tmp_path / "net")


def test_packed_layers_are_refused(tmp_path: Path) -> None:
    model = small.model(small.Vector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this way to quantise
        packed = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        net = offramp.attach_exits(packed, small.inputs(small.Vector)[:4], heads=("linear",), cuts="all")
        with pytest.raises(InputError, match="layers of quantize_dynamic hold packed weights"):
            to_onnx(net, Frontier([_config(net)]), offramp.measure_cost(net), tmp_path / "net")


class Deep(nn.Module):
    """Thirty places for exits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(small.Mixer() for _ in range(31))
        self.top = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.top(x)


def test_one_graph_holds_so_many_exits(tmp_path: Path) -> None:
    net = offramp.attach_exits(small.model(Deep), torch.randn(2, 8), heads=("linear",))
    choices = tuple(ExitChoice(position, "linear", 0.5) for position in net.positions[1:])
    assert len(choices) > 28
    frontier = Frontier([ExitConfig(choices, expected=_config(net).expected)])
    with pytest.raises(InputError, match=r"exits at 28 positions at most, the frontier uses 3\d; export one"):
        to_onnx_single(net, frontier, offramp.measure_cost(net), tmp_path / "net")


def test_a_graph_that_differs_from_pytorch_is_refused() -> None:
    case = CASES[SIMPLE]()
    piece = next(iter(pieces(case.net, case.frontier)))
    check = Check("a runtime")

    def exact(values: Any) -> list[Any]:
        with torch.no_grad():
            return [each.numpy() for each in piece.module(*map(torch.from_numpy, values))]

    check.piece(piece, exact)
    assert check.largest == 0
    with pytest.raises(InputError, match=r"h2_0: a runtime differs from PyTorch by .*, expected at most"):
        check.piece(piece, lambda values: [each * 1.01 for each in exact(values)])
    with pytest.raises(InputError, match=r"expected float32\[1, 8\] as in PyTorch, a runtime gives float64"):
        check.piece(piece, lambda values: [each.astype(np.float64) for each in exact(values)])


def test_distances() -> None:
    assert distance(np.array([1.0, 200.0]), np.array([1.0, 200.02])) == pytest.approx(1e-4)
    assert distance(np.array([0.1]), np.array([0.2])) == pytest.approx(0.1)
    assert distance(np.array([np.inf, np.nan]), np.array([np.inf, np.nan])) == 0
    assert distance(np.array([1.0]), np.array([np.nan])) > 1e300
    assert distance(np.empty(0), np.empty(0)) == 0


@pytest.mark.parametrize(
    ("module", "what"), [("onnxscript", "writing ONNX"), ("onnxruntime", "running exported")]
)
def test_a_package_that_is_missing(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, what: str
) -> None:
    case = CASES[SIMPLE]()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'{what}.*; run: pip install "offramp\[onnx\]"'):
        to_onnx(case.net, case.frontier, case.costs, tmp_path / "net")


def test_one_graph_says_its_thresholds(folders: Any) -> None:
    """What a page in a browser reads instead of the frontier."""
    case: Case = CASES["carried mask"]()
    document = json.loads((folders("carried mask", "onnx-single") / MANIFEST).read_text())
    (row,) = document["thresholds"]
    chosen = {
        (case.net.positions.index(c.position), case.net.head_names.index(c.head)): c.threshold
        for c in case.frontier[0].choices
    }
    found = {(e["position"], e["head"]): t for e, t in zip(document["exits"], row, strict=True)}
    assert found == {exit_: float(np.float32(threshold)) for exit_, threshold in chosen.items()}
    assert [port["name"] for port in document["spans"][0]["inputs"]] == ["x0", "x1", "thresholds"]


def test_costs_that_are_fractions_are_counted(tmp_path):
    net = small.network(heads=("linear",))
    costs = CostTable(np.arange(len(net.positions) + 1) * 0.25, np.where(net.exists, 0.0625, 0.0), "kmacs")
    choice = ExitChoice(net.positions[1], "linear", float("-inf"))
    expected = Expected(quality=0.9, cost=0.3125, full_quality=0.9, full_cost=costs.full, samples=10)
    to_onnx(net, Frontier([ExitConfig([choice], expected=expected)]), costs, tmp_path / "net")
    engine = OrtEngine(tmp_path / "net", threads=1)
    x = small.inputs(count=4).numpy()
    engine(x)
    assert engine.stats().macs == 4 * costs.full
    engine.use(engine.frontier[0])
    engine.reset_stats()
    engine(x)
    assert (engine.stats().macs, engine.stats().full_macs) == (4 * 0.3125, 4 * costs.full)
