"""The command line: parse, call the verbs, print.

Errors made on purpose are one message and exit code 1; a stop by Ctrl-C is 130; anything else is 70 and
points to ``--debug``, which shows the traceback. ``certify`` without an answer is 3: no error, but no
certificate. Results for a machine go to standard output with ``--json``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from offramp.cli import options
from offramp.cli.bench import bench
from offramp.cli.export import export
from offramp.cli.output import (
    calibration_records,
    check_writable,
    names,
    open_artifact,
    pick,
    price_of,
    print_json,
    say,
    show_artifact,
    show_found,
    show_measured,
)
from offramp.cli.show import show
from offramp.errors import InputError, OfframpError

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    name="offramp",
    help="Make the cost of a trained PyTorch model a dial: small exit networks answer easy inputs early.",
    epilog="Start with: offramp demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_state = {"debug": False, "interrupted": False}
_OF_THE_SYSTEM = {
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
    errno.EIO, errno.EINVAL,
}  # fmt: skip
"""What the system says about paths and disks: messages, no faults of the program."""


def _print_version(wanted: bool) -> None:
    if wanted:
        from offramp._version import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    _state["debug"] = debug or _state["debug"]


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Turn errors into messages and exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            if _state["debug"] or isinstance(error, (typer.Exit, typer.Abort)):
                raise
            # an interrupt inside an import or the tracer can come out as another error
            message, code = _explain(KeyboardInterrupt() if _state["interrupted"] else error)
            say(message)
            raise typer.Exit(code) from None

    return run


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, OfframpError):
        return f"error: {error}", 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped; nothing half-written is left. A build goes on from here with the same command", 130
    if isinstance(error, BrokenPipeError):
        return "", 1
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"error: permission denied: {error.filename}; choose a path that you may read", 1
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        where = "standard output" if error.filename is None else str(error.filename)
        return f"error: {where}: {error.strerror}; choose another path, or make room", 1
    name = f"{type(error).__name__}: {error}"
    return f"unexpected error: {name}\nrun again with --debug and report the traceback", 70


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the artifact and the report.")] = Path("offramp-demo"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json_: options.Json = False,
) -> None:
    """See it work on real handwritten digits, in about a minute: train, attach, search, switch, report."""
    from offramp.cli.demo import run_demo

    check_writable(out)
    figures = run_demo(out, Console(quiet=json_), seed=seed)
    if json_:
        print_json(figures)


@app.command()
@guarded
def build(
    model: options.Model,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Folder of the artifact; an older artifact there is replaced.")],
    heads: Annotated[
        str, typer.Option(help="'auto', or kinds of exit to try, separated by commas.")
    ] = "auto",
    cuts: Annotated[
        str, typer.Option(help="'auto', 'all', or names of modules separated by commas.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="Passes over the cached features.")] = 30,
    views: Annotated[int, typer.Option(help="Passes over the train loader (more pay if it augments).")] = 1,
    task: Annotated[
        str, typer.Option(help="What an answer is: classification, multi-label, 'regression,scale=10' ...")
    ] = "classification",
    confidence: Annotated[
        str | None, typer.Option(help="How certain an exit is: max-probability, margin, entropy ...")
    ] = None,
    input_exit: options.InputExit = None,
    mask: Annotated[
        str | None, typer.Option(help="Name of the input that is 0 at padding; attention_mask is found.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Key of the scores where the model returns a dict.")
    ] = None,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Judge by agreement with the full model; needs no labels.")
    ] = False,
    max_exits: Annotated[int | None, typer.Option(help="At most this many exits in a configuration.")] = None,
    store_backbone: Annotated[
        bool, typer.Option("--store-backbone", help="Store the model's weights too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of initial weights and order.")] = 0,
    device: options.Device = None,
    json_: options.Json = False,
) -> None:
    """Attach exits to your model, train them, find the configurations, and write an artifact.

    A run that is stopped goes on where it was when you give the same command again.
    """
    from offramp.artifacts import check_replaceable, save
    from offramp.pipeline import BuildConfig, build as run_build, summary
    from offramp.sources import load_project
    from offramp.storage import folder_lock
    from offramp.training import TrainConfig

    config = BuildConfig(
        heads="auto" if heads == "auto" else names(heads),
        cuts=cuts if cuts in ("auto", "all") else names(cuts),
        confidence=confidence,
        output=output,
        mask=mask,
        quality="agreement" if agreement else "labels",
        max_exits=max_exits,
        train=TrainConfig(epochs=epochs, views=views, seed=seed),
    )
    check_writable(out)
    check_replaceable(out)
    work = out.absolute().with_name(f".{out.absolute().name}.work")
    project = load_project(model, data, task=task, output=output, input_exits=input_exit or (), device=device)
    config = replace(config, task=project.task, input_exits=project.input_exits)
    ready = None if json_ else functools.partial(show_found, project.splits.summary)
    with folder_lock(work):  # until it is removed
        built = run_build(project.model, project.splits, config, work_dir=work, ready=ready)
        save(
            out,
            built.net,
            built.frontier,
            built.costs,
            records=built.records,
            include_backbone=store_backbone,
            summary=built.summary,
        )
        shutil.rmtree(work, ignore_errors=True)
    if json_:
        print(summary(built))
        return
    name = "report" if "report" in built.records else "search"
    show_measured(built.frontier, built.records[name], built.costs, name)
    print(
        f"\nwrote {out}\nnext: offramp report {out}   |   offramp run {out} {model} {data} --max-drop 0.005"
        + "".join(f" --input-exit {each}" for each in input_exit or ())
    )


@app.command()
@guarded
def search(
    artifact: options.Artifact,
    method: Annotated[str, typer.Option(help="exact, single-pass, iterative or same-threshold.")] = "exact",
    regularise: Annotated[
        str, typer.Option(help="'auto', 'none', or a price per exit such as 0.0005.")
    ] = "auto",
    max_exits: Annotated[
        int | None, typer.Option(help="At most this many exits in a configuration; as built unless given.")
    ] = None,
    json_: options.Json = False,
) -> None:
    """Search the configurations of an artifact again; the model is not needed."""
    from offramp.artifacts import load_costs, load_frontier, load_records, read_manifest, replace_frontier
    from offramp.solver import search as find_frontier

    manifest = read_manifest(artifact)
    records, costs = load_records(artifact, manifest, "search"), load_costs(artifact, manifest)
    price = price_of(regularise)
    most = load_frontier(artifact, manifest).max_exits if max_exits is None else max_exits
    frontier = find_frontier(records, costs, method=method, regularise=price, max_exits=most)
    replace_frontier(artifact, frontier)
    if frontier.in_sample and not json_:
        print(
            "expected figures are in-sample: they flatter, and --max-drop will go by them; "
            "--method exact --regularise auto promises what new samples keep"
        )
    show_artifact(artifact, frontier, json_)


@app.command(name="eval")
@guarded
def evaluate(
    artifact: options.Artifact,
    max_cost: options.MaxCost = None,
    max_drop: options.MaxDrop = None,
    min_quality: options.MinQuality = None,
    tradeoff: options.Tradeoff = None,
    json_: options.Json = False,
) -> None:
    """Show what the configurations do on the report split, from the artifact alone."""
    from offramp.artifacts import load_frontier, read_manifest
    from offramp.core import Frontier

    frontier = load_frontier(artifact, read_manifest(artifact))
    chosen = pick(frontier, max_cost, max_drop, min_quality, tradeoff)
    show_artifact(artifact, frontier if chosen is None else Frontier([chosen]), json_)


@app.command()
@guarded
def certify(
    artifact: options.Artifact,
    max_drop: Annotated[
        float, typer.Option(help="At most this loss of quality on new data: 0.005 is half a point.")
    ],
    delta: Annotated[float, typer.Option(help="Probability of being wrong, at most: 0.05 for 95%.")] = 0.05,
    split: Annotated[
        str | None, typer.Option(help="Which of the artifact's records to use; report unless given.")
    ] = None,
    records: Annotated[Path | None, typer.Option(help="A file of records of new samples instead.")] = None,
    json_: options.Json = False,
) -> None:
    """Find the cheapest configuration that provably loses at most --max-drop on new data.

    Its certificate is stored in the artifact; `offramp report` shows it. The exit code is 3 where no
    configuration can be certified; the artifact then stays as it is.
    """
    from offramp.artifacts import load_costs, load_frontier, read_manifest, replace_frontier
    from offramp.core import config_to_dict
    from offramp.guarantees import certify as run_certify, samples_needed

    seen, source = calibration_records(artifact, split, records)
    manifest = read_manifest(artifact)
    frontier, costs = load_frontier(artifact, manifest), load_costs(artifact, manifest)
    config = run_certify(frontier, seen, costs, max_drop=max_drop, delta=delta)
    if config is None:
        needed = samples_needed(frontier, seen, costs, max_drop=max_drop, delta=delta)
        if json_:
            print_json({"certified": False, "samples": seen.samples, "samples_needed": needed})
            raise typer.Exit(3)
        print(
            f"no configuration can be certified to lose at most {max_drop:g} with delta {delta:g} on "
            f"{seen.samples:,} samples"
        )
        if needed is None:
            print("even the most expensive one loses that much on them: allow more, or search again")
        else:
            print(
                "if the most expensive one loses what it lost here, roughly "
                f"{max(needed, seen.samples + 1):,} samples would do for that one"
            )
        raise typer.Exit(3)
    replace_frontier(artifact, frontier.with_certificate(config))
    index = [own.choices for own in frontier].index(config.choices)
    if json_:
        said = str(config.certificate)
        print_json({"certified": True, "index": index, "in_words": said, **config_to_dict(config)})
        return
    assert config.expected is not None  # a frontier accepts no other
    print(f"configuration {index} of {artifact}, expected at {config.expected.relative_cost:.1%} of the cost")
    print(config.certificate)
    print(
        f"These samples ({source}) chose the configuration: the certificate allows for that, but its other "
        "figures on them are no independent evidence any more."
    )


@app.command()
@guarded
def run(
    artifact: options.Artifact,
    model: options.Model,
    data: options.Data,
    max_cost: options.MaxCost = None,
    max_drop: options.MaxDrop = None,
    min_quality: options.MinQuality = None,
    tradeoff: options.Tradeoff = None,
    split: Annotated[str, typer.Option(help="Which of the data's loaders to run over.")] = "report",
    input_exit: options.InputExit = None,
    device: options.Device = None,
    json_: options.Json = False,
) -> None:
    """Run the engine over your data under one configuration and measure it; by default the full model."""
    from offramp.artifacts import load_summary, read_manifest
    from offramp.core import ExitConfig
    from offramp.measure import measure_loader
    from offramp.report import shares
    from offramp.runtime import Engine
    from offramp.sources import load_splits

    source, net, frontier, costs = open_artifact(artifact, model, input_exit, device)
    stored = load_summary(artifact, read_manifest(artifact))
    splits = load_splits(data, source, net.task, net.output, stored)
    config = pick(frontier, max_cost, max_drop, min_quality, tradeoff) or ExitConfig()
    loader = getattr(splits, split, None) if split in ("train", "search", "report") else None
    if loader is None:
        raise InputError(f"--split: expected train, search or report, given by DATA; got {split!r}")
    measured = measure_loader(Engine(net, config, costs=costs), loader)
    result, unmodified = measured.result, measured.unmodified_milliseconds
    if json_:
        by_position = dict(zip((*net.positions, "output"), result.exit_shares, strict=True))
        print_json(
            {
                "quality": result.quality,
                "relative_macs": result.relative_macs,
                "batches": measured.batches,
                "milliseconds": result.milliseconds,
                "unmodified_milliseconds": unmodified,
                "exit_shares": by_position,
            }
        )
        return
    quality = "no labels" if result.quality is None else f"quality {result.quality:.2%}"
    print(f"{quality}, MACs {result.relative_macs:.1%} of the full model")
    print(f"median batch {result.milliseconds:.2f} ms, unmodified model {unmodified:.2f} ms")
    print(f"samples leave at: {shares(result.exit_shares, net.positions, most=8)}")


@app.command()
@guarded
def report(
    artifact: options.Artifact,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Early-exit report",
) -> None:
    """Write one self-contained HTML page with the plots and the table of an artifact."""
    from offramp.artifacts import load_costs, load_frontier, load_records, load_summary, read_manifest
    from offramp.report import write_report

    manifest = read_manifest(artifact)
    records = load_records(artifact, manifest, "report")
    frontier, costs = load_frontier(artifact, manifest), load_costs(artifact, manifest)
    summary = load_summary(artifact, manifest)
    notes = {} if summary is None else summary.facts()
    print(f"wrote {write_report(out, frontier, records, costs, title=title, notes=notes)}")


for _command in (show, bench, export):
    app.command()(guarded(_command))


def main() -> None:
    """Entry point: ``--debug`` is understood anywhere on the line."""

    def stop(_signal: int, _frame: object) -> None:
        _state["interrupted"] = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    arguments = sys.argv[1:]
    _state["debug"] = "--debug" in arguments
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="offramp")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _flush()


def _flush() -> None:
    """Write out what was printed now: at the end of the process an error could not be told any more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        message, code = _explain(error)
        say(message)
        with contextlib.suppress(OSError):  # nothing more can be written there
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)
