"""Do samples from different arrivals in one batch pay? StreamEngine against batches that stay together.

Samples arrive as a Poisson process, one by one, from a thread of their own. Three servers answer them:

    plain    collects up to 32 that wait, runs the model, then the next 32
    batch    the same with Engine, which shrinks the batch at every exit: compaction, batch by batch
    stream   StreamEngine: what is left of a batch is merged with other samples at the same position

No server idles while something waits. (To wait for a fuller batch was tried for the first two: under load it
changes nothing, their batches are full.) All get their samples from the same code, answer the same kind of
future and check inputs in the same way. Latency counts from the moment a sample was due to arrive, so that a
generator of load that runs late favours none. Each server is offered rising rates; its throughput at a bound
is the highest rate, linear between those offered, at which 95 of 100 answers take at most that long. Servers
take turns at every rate and rounds are repeated: ratios are of servers in the same round, and medians of
rounds count.

    python bench/streaming [--demo DIR] [--artifact DIR --backbones DIR] [--rounds 5]

``--demo`` reads the artifact of ``offramp demo`` instead of training the digits network again; ``--artifact``
is that of ``python bench/fashion_mnist artifact``. Writes results/stream.json and results/stream.png; what
the file has on other networks and configurations stays.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import offramp
from bench.fashion_mnist.fashion import DEFAULT_FOLDER, load_fashion
from bench.fashion_mnist.resnet import load_backbone
from bench.shared import command, results
from offramp import StreamEngine
from offramp.cli.demo import digit_splits
from offramp.cli.digits import DigitsResNet, load_digits, train_backbone
from offramp.graph import evaluating
from offramp.pipeline import BuildConfig, build
from offramp.streaming.request import one_sample

LIMIT = 32
DROPS = (0.002, 0.01, 0.03)
"""Configurations: the cheapest with at most this much below the full model, by the search split."""
SHARES = (0.6, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
"""Rates offered, as shares of what a server answers when everything has arrived already."""
PASSES = (3, 5, 10, 20)
"""Bounds of latency, in times that batch by batch takes for a full batch."""


class Server(Protocol):
    """Answers samples that are submitted one by one."""

    def submit(self, inputs: object) -> Future[Any]:
        """One sample."""

    def close(self) -> None:
        """Answer what waits, and stop."""


Maker = Callable[[], Server]


class BatchServer:
    """Answers up to ``LIMIT`` waiting samples together, then the next.

    Args:
        net: whose input spec samples are checked against.
        answer: a batch to (outputs, positions, confidences).
    """

    def __init__(self, net: offramp.ExitNetwork, answer: Callable[[Tensor], Sequence[Any]]) -> None:
        self._spec, self._answer = net.partition.spec, answer
        self._waiting: deque[tuple[Tensor, Future[Any]]] = deque()
        self._came, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, inputs: object) -> Future[Any]:
        """One sample."""
        value, future = one_sample(self._spec, inputs)[0], Future[Any]()
        with self._came:
            self._waiting.append((value, future))
            self._came.notify()
        return future

    def close(self) -> None:
        """Answer what waits, and stop."""
        with self._came:
            self._closed = True
            self._came.notify()
        self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._came:
                while not self._waiting:
                    if self._closed:
                        return
                    self._came.wait()
                count = min(LIMIT, len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(count)]
            answers = self._answer(torch.cat([value for value, _ in taken]))
            for (_, future), *answer in zip(taken, *answers, strict=True):
                if future.set_running_or_notify_cancel():
                    future.set_result(answer)


def servers(net: offramp.ExitNetwork, config: offramp.ExitConfig) -> dict[str, Maker]:
    """How to start each server."""
    engine, model = offramp.Engine(net, config), net.backbone

    def compacted(batch: Tensor) -> Sequence[Any]:
        out = engine(batch)
        return out.outputs.unbind(0), out.position.tolist(), out.confidence.tolist()

    def plain(batch: Tensor) -> Sequence[Any]:
        outputs = model(batch)
        confidence = outputs.softmax(1).amax(1)
        return outputs.unbind(0), [len(net.positions)] * len(batch), confidence.tolist()

    return {
        "plain": lambda: BatchServer(net, plain),
        "batch": lambda: BatchServer(net, compacted),
        "stream": lambda: StreamEngine(net, config, batch_limit=LIMIT, queue_limit=1 << 20),
    }


@dataclass(frozen=True)
class Load:
    """One rate offered to one server, latencies in seconds."""

    rate: float
    p50: float
    p95: float
    p99: float


def offer(make: Maker, samples: Sequence[Tensor], rate: float, seconds: float, seed: int) -> Load:
    """Poisson arrivals at a rate; the first fifth warms up."""
    random_ = random.Random(seed)
    due, now = list[float](), 0.0
    while now < seconds:
        now += random_.expovariate(rate)
        due.append(now)
    chosen = [samples[random_.randrange(len(samples))] for _ in due]
    done, server = [0.0] * len(due), make()
    try:
        start, futures = time.perf_counter() + 0.01, list[Future[Any]]()
        for i, moment in enumerate(due):
            while (early := start + moment - time.perf_counter()) > 0:
                time.sleep(early)
            futures.append(server.submit(chosen[i]))
            futures[-1].add_done_callback(lambda _, i=i: done.__setitem__(i, time.perf_counter()))
        for future in futures:
            future.result(60)
    finally:
        server.close()
    warm = len(due) // 5
    latency = np.array(done[warm:]) - start - np.array(due[warm:])
    return Load(rate, *(float(q) for q in np.quantile(latency, [0.5, 0.95, 0.99])))


def capacity(make: Maker, samples: Sequence[Tensor], count: int, seed: int) -> float:
    """Samples per second where all have arrived already."""
    random_, server = random.Random(seed), make()
    chosen = [samples[random_.randrange(len(samples))] for _ in range(count)]
    try:
        start = time.perf_counter()
        futures = [server.submit(each) for each in chosen]
        for future in futures:
            future.result(60)
        return count / (time.perf_counter() - start)
    finally:
        server.close()


def throughput(loads: Sequence[Load], bound: float, quantile: str = "p95") -> float | None:
    """Highest rate within a bound, the first time it is passed; None where all rates are within, or none."""
    before: Load | None = None
    for load in sorted(loads, key=lambda each: each.rate):
        late = getattr(load, quantile)
        if late > bound:
            if before is None:
                return None
            early = getattr(before, quantile)
            return before.rate + (load.rate - before.rate) * (bound - early) / (late - early)
        before = load
    return None


def batch_seconds(net: offramp.ExitNetwork, samples: Sequence[Tensor]) -> float:
    """What the unmodified model takes for a full batch, median."""
    batch, taken = torch.stack(list(samples[:LIMIT])), list[float]()
    with torch.inference_mode():
        for _ in range(15):
            start = time.perf_counter()
            net.backbone(batch)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def capacities(makers: dict[str, Maker], samples: Sequence[Tensor], seconds: float) -> dict[str, float]:
    """Best of four turns each."""
    most = dict.fromkeys(makers, LIMIT / seconds)
    for seed in range(4):
        for name, make in makers.items():
            count = max(8 * LIMIT, int(most[name] * 40 * seconds))
            most[name] = max(most[name], capacity(make, samples, count, seed))
    return most


def measure_round(
    makers: dict[str, Maker], samples: Sequence[Tensor], most: dict[str, float], seconds: float, turn: int
) -> dict[str, list[Load]]:
    """Every server at every rate, in turns."""
    found: dict[str, list[Load]] = {name: [] for name in makers}
    for i, share in enumerate(SHARES):
        names = list(makers) if (turn + i) % 2 == 0 else list(makers)[::-1]
        for name in names:
            found[name].append(offer(makers[name], samples, share * most[name], seconds, 1000 * turn + i))
    return found


def at_bounds(rounds: Sequence[dict[str, list[Load]]], bounds: Sequence[float]) -> list[dict[str, Any]]:
    """Throughput of each server and ratios to batch by batch: medians of the rounds that have both."""
    rows = []
    for quantile in ("p95", "p99"):
        for bound in bounds:
            each = [{name: throughput(loads, bound, quantile) for name, loads in r.items()} for r in rounds]
            row: dict[str, Any] = {"quantile": quantile, "bound": bound}
            for name in rounds[0]:
                rates = [rate for r in each if (rate := r[name]) is not None]
                row[name] = statistics.median(rates) if rates else None
            ratios = [r["stream"] / r["batch"] for r in each if r["stream"] and r["batch"]]
            row["ratio"], row["ratios"] = statistics.median(ratios) if ratios else None, ratios
            rows.append(row)
    return rows


def study(network: str, setting: Setting, drop: float, rounds: int, least: float) -> dict[str, Any]:
    """One configuration of one network."""
    config = setting.frontier.at(max_drop=drop)
    makers, unit = servers(setting.net, config), batch_seconds(setting.net, setting.samples)
    outcome = offramp.evaluate(setting.report, setting.costs, config)
    with evaluating(setting.net.backbone):
        most = capacities(makers, setting.samples, unit)
        bounds = [passes * LIMIT / most["batch"] for passes in PASSES]
        seconds, measured = max(least, 12 * bounds[-1]), list[dict[str, list[Load]]]()
        for turn in range(rounds):
            measured.append(measure_round(makers, setting.samples, most, seconds, turn))
            print(f"{network}, {drop}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "network": network, "max_drop": drop, "exits": len(config.choices), "quality": outcome.quality,
        "relative_macs": outcome.relative_cost, "exit_shares": outcome.exit_shares.tolist(),
        "batch_limit": LIMIT, "threads": torch.get_num_threads(), "seconds_per_rate": seconds,
        "plain_batch_seconds": unit, "capacity": most,
        "loads": [{name: [asdict(load) for load in loads] for name, loads in r.items()} for r in measured],
        "at_bounds": at_bounds(measured, bounds),
    }  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A network with exits, its frontier, and samples to serve."""

    net: offramp.ExitNetwork
    frontier: offramp.Frontier
    costs: offramp.CostTable
    report: offramp.ExitRecords
    samples: list[Tensor]


def digits_setting(folder: Path | None) -> Setting:
    """The demo's network; trained here where no artifact is given."""
    digits = load_digits(0)
    splits = digit_splits(digits, 0)
    samples = [image for batch in splits.report or () for image in batch[0]]
    if folder is None:
        built = build(train_backbone(digits.train, seed=0), splits, BuildConfig(max_exits=3))
        parts = built.net, built.frontier, built.costs
        return Setting(*parts, report=built.records["report"], samples=samples)
    parts = offramp.load(folder, DigitsResNet(), restore_backbone=True)
    return Setting(*parts, report=_report(folder), samples=samples)


def fashion_setting(folder: Path, backbones: Path, data: Path | None) -> Setting:
    """ResNet-56 on Fashion-MNIST."""
    images = load_fashion(data or DEFAULT_FOLDER).test[0][:2000]
    parts = offramp.load(folder, load_backbone(backbones, 56))
    return Setting(*parts, report=_report(folder), samples=list(images))


def _report(folder: Path) -> offramp.ExitRecords:
    return offramp.ExitRecords.load(folder / "records-report.safetensors")


def print_table(found: Sequence[dict[str, Any]]) -> None:
    """One line for each network, configuration and bound."""
    servers = ("plain", "batch", "stream")
    names = ("network", "max drop", "MACs", "bound", *servers, "stream / batch", "rounds")
    table = results.table("Samples per second at equal latency, batch limit 32", names)
    for result in found:
        for row in result["at_bounds"]:
            cells = [f"{row[name]:.0f}" if row[name] else "-" for name in servers]
            ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
            spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}" if row["ratios"] else "-"
            bound = f"{row['quantile']} {1e3 * row['bound']:.0f} ms"
            told = (result["network"], f"{result['max_drop']:.1%}", f"{result['relative_macs']:.0%}", bound)
            table.add_row(*told, *cells, ratio, spread)
    Console().print(table)


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """95th percentile over offered rate, one panel per configuration; every dot is one run."""
    from bench.shared.figures import panels

    colours = {"plain": "#b0b0b0", "batch": "#ff7f0e", "stream": "#1f77b4"}
    told = {"plain": "unmodified model", "batch": "Engine, batch by batch", "stream": "StreamEngine"}
    with panels(path, (1, len(found)), (4.2 * len(found), 3.6), settings={}) as (_, axes):
        for axis, result in zip(axes[0], found, strict=True):
            for server, colour in colours.items():
                loads = [load for measured in result["loads"] for load in measured[server]]
                rate, late = [load["rate"] for load in loads], [1e3 * load["p95"] for load in loads]
                axis.plot(rate, late, "o", color=colour, markersize=3, alpha=0.35)
                middle = {
                    r: statistics.median(p for q, p in zip(rate, late, strict=True) if q == r) for r in rate
                }
                axis.plot(
                    sorted(middle), [middle[r] for r in sorted(middle)], color=colour, label=told[server]
                )
            for row in result["at_bounds"]:
                axis.axhline(1e3 * row["bound"], color="#dddddd", linewidth=0.8, zorder=0)
            axis.set_yscale("log")
            axis.set_title(f"{result['network']}, at most {result['max_drop']:.1%} below full", fontsize=9)
            axis.set_xlabel("samples per second offered", fontsize=8)
            axis.set_ylabel("95th percentile of latency, ms", fontsize=8)
            axis.tick_params(labelsize=7.5)
        axes[0, 0].legend(fontsize=8, frameon=False)


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--demo", type=Path, help="folder of the demo's artifact")
    parser.add_argument("--artifact", type=Path, help="folder of the Fashion-MNIST artifact")
    parser.add_argument("--backbones", type=Path, help="folder of fashion_resnet56.safetensors")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST")
    parser.add_argument("--networks", nargs="+", help="only these: digits, ResNet-56")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="at each rate, at least")
    parser.add_argument("--drops", type=float, nargs="+", default=DROPS)
    parser.add_argument("--out", type=Path, default=results.RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    offramp.keep_memory()  # for all servers
    settings = {"digits": digits_setting(options.demo)}
    if options.artifact is not None:
        settings["ResNet-56"] = fashion_setting(options.artifact, options.backbones, options.data)
    gc.collect()
    gc.disable()  # a collection in the middle of a run would count as some server's latency
    measured = [
        study(name, settings[name], drop, options.rounds, options.seconds)
        for name in options.networks or settings
        for drop in options.drops
    ]
    print_table(measured)
    path = options.out / "stream.json"
    known = [*results.read(path, []), *measured]
    by_key = {(each["network"], each["max_drop"]): each for each in known}
    found = [by_key[key] for key in sorted(by_key)]
    results.write(path, found, indent=None)
    draw(found, options.out / "stream.png")
