"""Record sets that configuration searches are compared on: stored ones, generated ones, and changes to both.

    store, load        a folder with records.safetensors and costs.json
    load_seeds         folders <seed>/search and <seed>/report of such
    generated          records whose exits look at one growing evidence, as a network's do
    charged            the same costs, a share of the full model's added to each exit
    with_input_exit    the same records, and a head at the model's input
    describe           accuracy, confidence and agreement of the exits of a set

Arrays only: (P positions, C heads, N samples), as in ``offramp.records``.

    python bench/search describe [FOLDER ...]      describes stored sets, and a generated one beside them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from offramp import CostTable, ExitRecords
from offramp.core.ranking import auroc

Floats = npt.NDArray[np.float32]

RECORDS, COSTS = "records.safetensors", "costs.json"

FULL_MACS = 100e6
FIRST, LAST = 0.60, 0.938  # quality of the first block's smallest head, and of the full model
SIZE = 0.4  # what the largest head adds to the first block's, in standard deviations (none at the end)
JITTER = (
    0.03  # between networks, of the quality of the full model and of the exits; a fifth at the last block
)
HARDNESS = 0.42  # share of the margin's variance that is a sample's lasting difficulty
CHANGE = 1.5  # of the rest, exp(-CHANGE) is what the first block and the last have in common
OWN, OWN_CHANGE = (0.2, 0.002), 4.0  # share that is a head's own, first and last; how fast that changes
RIVALS = (
    0.15,
    0.6,
)  # confidence of a wrong answer over that of a right one at the same margin, first and last
NOISE, OWN_NOISE = (0.45, 0.2), (0.15, 0.15)  # of the confidence, first and last; share that is a head's own
SLOPE, RESERVE = (1.0, 2.65), (0.6, 1.1)  # of the logit of the confidence, first and last
INPUT_QUALITY, INPUT_COST, INPUT_OWN, INPUT_DEPTH = 0.915, 0.095, 0.16, 0.75

Parts = tuple[Floats, Floats, Floats]
"""Values of samples at the exits (P, C, N), at the full model (N,) and at the input exit (N,)."""


def store(folder: str | Path, records: ExitRecords, costs: CostTable) -> None:
    """Write a set into a folder, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records.save(folder / RECORDS)
    (folder / COSTS).write_text(costs.to_json())


def load(folder: str | Path) -> tuple[ExitRecords, CostTable]:
    """Read what ``store`` wrote.

    Raises:
        FileNotFoundError: there is no set in this folder.
    """
    folder = Path(folder)
    if not (folder / RECORDS).exists() or not (folder / COSTS).exists():
        raise FileNotFoundError(
            f"{folder}: expected {RECORDS} and {COSTS}, found no such set; "
            "make it with: python bench/fashion_mnist records, or python bench/search digits"
        )
    return ExitRecords.load(folder / RECORDS), CostTable.from_json((folder / COSTS).read_text())


def seed_folders(folder: Path) -> list[Path]:
    """The folders of a set that has fixed splits for each seed, in order; none where it is one pool."""
    return sorted((path.parent for path in folder.glob("*/search")), key=lambda p: (len(p.name), p.name))


def load_seeds(folder: Path, seeds: int) -> Iterator[tuple[ExitRecords, ExitRecords, CostTable]]:
    """Records to search on, records to report on, and costs, for the first seeds of such a set."""
    for path in seed_folders(folder)[:seeds]:
        records, costs = load(path / "search")
        yield records, load(path / "report")[0], costs


def charged(costs: CostTable, share: float, exists: npt.NDArray[np.bool_] | None = None) -> CostTable:
    """Costs with ``share`` of the full model's added to every head: what an exit check costs a runtime.

    Args:
        costs: to start from.
        share: of the full model's cost, at least 0.
        exists: (P, C) which heads there are; without it those that cost something.

    Raises:
        ValueError: share is negative, or exists has another shape.
    """
    there = costs.heads > 0 if exists is None else np.asarray(exists, bool)
    if np.ndim(share) or not share >= 0:
        raise ValueError(f"share: expected a number of at least 0, got {share!r}; 0.005 adds half a percent")
    if there.shape != costs.heads.shape:
        raise ValueError(f"exists: expected shape {costs.heads.shape}, got {there.shape}")
    meta = {**(costs.meta or {}), "charged": float(share)}
    return replace(costs, heads=costs.heads + share * costs.full * there, meta=meta)


def with_input_exit(
    records: ExitRecords,
    costs: CostTable,
    confidence: npt.ArrayLike,
    quality: npt.ArrayLike,
    cost: float,
    name: str = "model",
    logits: npt.ArrayLike | None = None,
) -> tuple[ExitRecords, CostTable]:
    """A new head that exists at position 0 only, as the last one in C.

    Args:
        records: to start from.
        costs: of the same exits.
        confidence: (N,).
        quality: (N,) in [0, 1].
        cost: of the whole head, in the unit of ``costs``.
        name: of the head; must be new.
        logits: (N, K) its outputs; kept if the records hold the others', and without them none are.

    Raises:
        ValueError: a shape does not fit, or there is a head of this name.
    """
    positions, count, samples = records.confidence.shape
    values = {"confidence": np.asarray(confidence), "quality": np.asarray(quality)}
    shapes = dict.fromkeys(values, (samples,))
    if records.logits is not None and logits is not None:
        values["logits"], shapes["logits"] = np.asarray(logits), (samples, records.logits.shape[-1])
    for label, value in values.items():
        if value.shape != shapes[label]:
            raise ValueError(f"{label}: expected shape {shapes[label]}, got {value.shape}")
    if name in records.heads:
        raise ValueError(f"name: expected a new one, got {name!r}; there are {records.heads}")
    arrays: dict[str, Floats | None] = {"logits": None}
    for label, value in values.items():
        row = np.zeros((positions, 1, *value.shape), np.float32)
        row[0, 0] = value
        arrays[label] = np.concatenate([getattr(records, label), row], axis=1)
    exists = np.zeros((positions, count + 1), bool)
    exists[:, :count], exists[0, count] = records.exists, True
    heads = np.zeros((positions, count + 1))
    heads[:, :count], heads[0, count] = costs.heads, cost
    more = replace(records, **arrays, exists=exists, heads=(*records.heads, name))
    return more, replace(costs, heads=heads)


def generated(
    seed: int, samples: int, *, positions: int = 27, heads: int = 4, input_exit: bool = False
) -> tuple[ExitRecords, CostTable]:
    """Records of a network whose exits all look at one evidence that grows with depth.

    An exit is right where its margin is above 0. A margin adds up a skill, the sample's lasting difficulty
    (few samples are very hard: there all exits fail together, and confidently), evidence that wanders from
    block to block, ever less, and a head's own view of it. Confidence is the margin's size, less where the
    answer is wrong, with noise that also wanders, bent by each exit's own slope and reserve. The full model
    is the end of the same evidence. Which network (skills, costs, jitter) depends on ``seed``, ``positions``
    and ``heads``, not on ``samples``; samples to search on and to report on are drawn in one call and split.

    First block / middle / last, smallest to largest head, and in brackets ResNet-56 on Fashion-MNIST with
    heads "linear" to "conv": accuracy .60-.74/.84-.89/.94 (.61-.75/.85-.89/.94), AUROC .79-.83/.88-.90/.92
    (.74-.82/.86-.89/.93), agreement with the next exit .88-.90/.95-.96/.99 (.81-.89/.97/.99), errors'
    correlation with the full model's .23-.29/.51-.57/.96 (.19-.27/.45-.53/.94-.96), the input exit's .64
    (.63). Where the confidence of an exit in the middle is above its median, leaving loses an answer that the
    full model has right on .000-.001 of the samples (.001-.005), and wins one on .001 (.000-.001).

    Args:
        seed: of network and samples.
        samples: N.
        positions: P, the input included.
        heads: C, of rising size, quality and cost (0.02 % to 2 % of the full model).
        input_exit: one strong head "model" at the input as well, of 9.5 % of the full model's cost.

    Raises:
        ValueError: a count is below 1.
    """
    for name, count in (("samples", samples), ("positions", positions), ("heads", heads)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    network, draw = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    depth = np.maximum(np.arange(positions + 1) - 1, 0) / max(positions - 1, 1)
    skill = _skills(network, depth, heads)
    costs = _costs(network, positions, heads)
    curve = _curves(network, depth, heads)
    ease = 1 - draw.standard_exponential(samples, np.float32)
    evidence = _latent(draw, depth, (heads, samples), OWN, ease)
    margin = [added + part for added, part in zip(skill, evidence, strict=True)]
    noise = _latent(draw, depth, (heads, samples), OWN_NOISE)
    confidence = [_confidence(*parts) for parts in zip(margin, noise, curve, strict=True)]
    exists = np.ones((positions, heads), bool)
    exists[0] = False
    records = ExitRecords(
        confidence=confidence[0],
        quality=margin[0] > 0,
        final_quality=margin[1] > 0,
        exists=exists,
        positions=("input", *(f"block{i}" for i in range(1, positions))),
        heads=tuple(f"size{i}" for i in range(heads)),
        final_confidence=confidence[1],
        meta={"source": "generated", "seed": seed},
    )
    if not input_exit:
        return records, costs
    return with_input_exit(records, costs, confidence[2], margin[2] > 0, INPUT_COST * costs.full)


def _skills(network: np.random.Generator, depth: npt.NDArray[np.float64], heads: int) -> list[Floats]:
    """What is added to the latents so that they are above 0 as often as they should."""
    normal, to_go = NormalDist(), 1 - depth[:-1, None]
    full, first = (normal.inv_cdf(q) + network.normal(0, JITTER) for q in (LAST, INPUT_QUALITY))
    last = normal.cdf(full)
    smallest = np.array([[normal.inv_cdf(last - (last - FIRST) * rest**2)] for rest in to_go[:, 0]])
    jitter = network.normal(0, JITTER, (len(to_go), heads)) * (0.2 + 0.8 * to_go)
    wanted = smallest + np.linspace(0, SIZE, heads) * to_go + jitter
    values = np.random.default_rng(0)
    ease = 1 - values.standard_exponential(50_000, np.float32)
    rest = values.standard_normal(50_000, np.float32)
    own = np.append(_between(OWN, depth), INPUT_OWN)
    skills = []
    for share, probits in zip(own, [*wanted, [full], [first]], strict=True):
        margin = _mix(rest, ease, HARDNESS * (1 - share))
        skills.append(-np.quantile(margin, [normal.cdf(-probit) for probit in probits]).astype(np.float32))
    return [np.stack(skills[:-2])[:, :, None], *skills[-2:]]


def _curves(
    network: np.random.Generator, depth: npt.NDArray[np.float64], heads: int
) -> list[tuple[Floats, Floats, Floats, Floats]]:
    """Rivals, noise, slope and reserve of the confidence of each part; slope and reserve vary at random."""
    shape = (len(depth) - 1, heads)
    jitter = np.ones(shape), np.ones(shape), network.normal(1, 0.06, shape), network.normal(1, 0.2, shape)
    ends = (RIVALS, NOISE, SLOPE, RESERVE)
    exits = tuple(
        (np.interp(depth[:-1, None], (0, 1), end) * factor)[:, :, None].astype(np.float32)
        for end, factor in zip(ends, jitter, strict=True)
    )
    last = tuple(np.float32(end[1]) for end in ends)
    return [exits, last, last]


def _costs(network: np.random.Generator, positions: int, heads: int) -> CostTable:
    backbone = np.concatenate([[0], np.cumsum(network.uniform(0.7, 1.3, positions))])
    share = np.geomspace(2e-4, 2e-2, heads) * network.uniform(0.8, 1.0, (positions, 1))
    share[0] = 0
    return CostTable(backbone * (FULL_MACS / backbone[-1]), share * FULL_MACS, "macs")


def _latent(
    draw: np.random.Generator,
    depth: npt.NDArray[np.float64],
    shape: tuple[int, int],
    own: tuple[float, float],
    lasting: Floats | None = None,
) -> Parts:
    """Evidence at every depth, ``HARDNESS`` of it lasting, and what heads make of it; ``shape`` is (C, N)."""
    evidence = _walk(draw, np.exp(CHANGE * np.diff((1 - depth) ** 2)), shape[1:])
    if lasting is not None:
        evidence = _mix(evidence, lasting, HARDNESS)
    views = _walk(draw, np.exp(-OWN_CHANGE * np.diff(depth[:-1])), shape)
    exits = _mix(evidence[:-1, None], views, _between(own, depth[:-1])[:, None, None])
    look = evidence[np.argmin(np.abs(depth - INPUT_DEPTH))]
    return exits, evidence[-1], _mix(look, draw.standard_normal(shape[1], np.float32), INPUT_OWN)


def _between(ends: tuple[float, float], depth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From the first block's value to the last's, with diminishing returns."""
    return ends[1] + (ends[0] - ends[1]) * (1 - depth) ** 2


def _walk(draw: np.random.Generator, keep: npt.NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    """Autoregressive over its first axis, unit variance; neighbours i, i + 1 correlate by ``keep[i]``."""
    values = draw.standard_normal((len(keep) + 1, *shape), np.float32)
    for i, kept in enumerate(keep):
        values[i + 1] = _mix(values[i], values[i + 1], 1 - kept**2)
    return values


def _mix(a: Floats, b: Floats, share: npt.ArrayLike) -> Floats:
    """Of unit variance again, ``share`` of it from ``b``."""
    part = np.asarray(share, np.float32)
    return np.sqrt(1 - part) * a + np.sqrt(part) * b


def _confidence(margin: Floats, noise: Floats, curve: tuple[Floats, Floats, Floats, Floats]) -> Floats:
    """In (0.002, 0.998): label smoothing keeps networks from more. ``curve`` as from ``_curves``."""
    rivals, amount, slope, reserve = curve
    strength = np.where(margin > 0, margin, -rivals * margin) + amount * noise
    return 1 / (1 + np.exp(-6 * np.tanh((slope * strength - reserve) / 6)))


def describe(records: ExitRecords) -> list[dict[str, float | str]]:
    """For the first, middle and last position of every head: what calibrates ``generated``.

    Accuracy; AUROC of the confidence against being right; agreement (share of samples on which both are right
    or both wrong) and correlation of errors with the next position's exit of this kind, and correlation with
    the full model's errors; rank correlation of confidences with the next position's; and of the more
    confident half of the samples, the share that leaving here gets wrong although the full model
    is right, and the reverse.
    """
    rows: list[dict[str, float | str]] = []
    for c, name in enumerate(records.heads):
        there = np.flatnonzero(records.exists[:, c])
        for p in sorted({int(there[0]), int(there[len(there) // 2]), int(there[-1])}):
            right, confidence = records.quality[p, c], records.confidence[p, c]
            near = p + 1 if p + 1 in there else p - 1 if p - 1 in there else p
            beside, half = records.quality[near, c], np.argsort(-confidence)[: len(confidence) // 2]
            change = (right - records.final_quality)[half]
            rows.append(
                {
                    "head": name,
                    "position": records.positions[p],
                    "accuracy": float(right.mean()),
                    "auroc": auroc(confidence, right),
                    "agree": float((right == beside).mean()),
                    "errors": float(np.corrcoef(right, beside)[0, 1]),
                    "errors, full": float(np.corrcoef(right, records.final_quality)[0, 1]),
                    "ranks": float(
                        np.corrcoef(_ranks(confidence), _ranks(records.confidence[near, c]))[0, 1]
                    ),
                    "lost": float(np.maximum(-change, 0).mean()),
                    "won": float(np.maximum(change, 0).mean()),
                }
            )
    return rows


def _ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """From 1; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def main() -> None:
    from bench.shared import command

    parser = command.parser(__doc__)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="of a stored set")
    sets = {folder: load(folder)[0] for folder in parser.parse_args().folders}
    sets["generated"] = generated(0, 15_000, input_exit=True)[0]
    for name, records in sets.items():
        print(f"{name}: {records.samples} samples, full model {records.final_quality.mean():.3f}")
        for row in describe(records):
            head, position, *figures = row.items()
            told = "  ".join(f"{key} {value:.3f}" for key, value in figures)
            print(f"  {head[1]:<8}{position[1]:<10}{told}")
