"""Records: what every exit would have said, per sample. Arrays of positions P x heads C x samples N."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from offramp.core import plots
from offramp.core.display import evenly, html_table, percent
from offramp.core.fields import freeze, is_count, mirrored
from offramp.errors import ArtifactError, InputError
from offramp.storage import load_arrays, parse_arrays, save_arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]

RECORDS_FORMAT = "offramp.records"
VERSION = 1
_ARRAYS = ("confidence", "quality", "final_quality", "final_confidence", "logits")


@dataclass(frozen=True, eq=False)
class ExitRecords:
    """Confidence and quality of every exit on every sample.

    Args:
        confidence: (P, C, N) float32, higher is more confident; non-finite values never exit.
        quality: (P, C, N) float32 in [0, 1].
        final_quality: (N,) float32 in [0, 1], of the backbone's own output.
        exists: (P, C) bool, False where there is no such head; entries there are ignored.
        positions: P names; the first is "input".
        heads: C names.
        final_confidence: (N,) float32, of the backbone's own output.
        logits: (P, C, N, K) outputs of the exits, if kept; (P, C, N, L, K) for an answer per token.
        meta: plain JSON values (task, source).
        quality_kind: what quality compares with: "labels", "agreement" (with the full model's own answer), or
            None where that is not known. Files keep it in ``meta["quality"]``, and it is read from there.
        groups: (N,) whole numbers; samples with the same one belong together (views of one picture, lines of
            one text): ``search`` never holds some of them out to judge what it found on the others. None
            where every sample stands alone.

    Raises:
        InputError: shapes disagree, a name repeats, or a quality of an existing head is outside [0, 1].
    """

    confidence: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float32]
    final_quality: npt.NDArray[np.float32]
    exists: npt.NDArray[np.bool_]
    positions: tuple[str, ...]
    heads: tuple[str, ...]
    final_confidence: npt.NDArray[np.float32] | None = None
    logits: npt.NDArray[np.float32] | None = None
    meta: Mapping[str, Any] | None = None
    quality_kind: str | None = None
    groups: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _ARRAYS}
        freeze(self, **{k: np.asarray(v, np.float32) for k, v in given.items() if v is not None})
        freeze(self, exists=np.asarray(self.exists, bool))
        if self.groups is not None:
            freeze(self, groups=_whole_numbers(self.groups, self.final_quality.size))
        for name in ("positions", "heads"):
            value = getattr(self, name)
            if isinstance(value, str):  # it would be taken apart into letters
                raise InputError(f"ExitRecords.{name}: expected a tuple of names, got the string {value!r}")
            freeze(self, **{name: tuple(value)})
        kind, meta = mirrored(
            "ExitRecords.quality_kind",
            self.quality_kind,
            self.meta,
            "quality",
            lambda value: isinstance(value, str),
            '"labels" or "agreement"',
        )
        freeze(self, quality_kind=kind, meta=meta)
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        p, c, n = len(self.positions), len(self.heads), self.final_quality.size
        shapes = ((p, c, n), (p, c, n), (n,), (n,), (p, c))
        for name, shape in zip((*_ARRAYS[:4], "exists"), shapes, strict=True):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"ExitRecords.{name}: expected shape {shape}, got {value.shape}")
        if self.logits is not None and (self.logits.ndim < 4 or self.logits.shape[:3] != (p, c, n)):
            raise InputError(
                f"ExitRecords.logits: expected shape ({p}, {c}, {n}, K), got {self.logits.shape}"
            )

    def _check_values(self) -> None:
        for kind, names in (("positions", self.positions), ("heads", self.heads)):
            if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
                raise InputError(f"ExitRecords.{kind}: expected distinct names, got {names}")
        if self.positions[:1] != ("input",):
            raise InputError(f"ExitRecords.positions: expected 'input' first, got {self.positions}")
        known = {"quality": self.quality[self.exists], "final_quality": self.final_quality}
        for name, values in known.items():
            if values.size and not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
                raise InputError(
                    f"ExitRecords.{name}: expected values in [0, 1], got {values.min()} to {values.max()}"
                )

    def __repr__(self) -> str:
        return (
            f"ExitRecords({self.samples} samples, {len(self.positions)} positions, {int(self.exists.sum())} "
            f"exits of {', '.join(self.heads) or 'no head'}, quality by {self.quality_kind or 'unknown'})"
        )

    def _repr_html_(self) -> str:
        """Mean quality of every exit on its own; of many positions, evenly spread ones."""
        quality = np.full(self.exists.shape, np.nan)
        full = math.nan
        if self.samples:
            quality[self.exists] = self.quality[self.exists].mean(axis=1, dtype=np.float64)
            full = float(self.final_quality.mean(dtype=np.float64))
        rows = [(self.positions[at], *map(percent, quality[at])) for at in evenly(len(self.positions))]
        caption = (
            f"Records of {self.samples:,} samples: mean quality ({self.quality_kind or 'kind unknown'}) of "
            f"each exit on its own; full model {percent(full)}"
        )
        return html_table(caption, ("position", *self.heads), rows, total=len(self.positions))

    def plot(self, ax: Axes | None = None, *, head: str | None = None, bins: int = 10) -> Axes:
        """Draw how quality rises with confidence, one line per position, early ones light and late ones dark.

        The samples of an exit are sorted by confidence into bins of equal size; a point is the mean of
        confidence and quality in one. The full model is dashed where its confidence is known.
        Calibrated confidence stays on the diagonal, which is drawn where all of it lies in [0, 1]; to a
        threshold it only matters that quality rises with confidence. Values that are not finite are left out.

        Args:
            ax: matplotlib axes to draw on; None makes a new pyplot figure, which a notebook shows.
            head: the kind of exit; None takes the first one that there is.
            bins: how many points a line has at most.

        Returns:
            The axes.

        Raises:
            InputError: there are no exits or no samples, no exits of that head, or ``bins`` is no count.
            MissingExtraError: matplotlib is not installed.
        """
        if not is_count(bins, 1):
            raise InputError(f"plot(bins=...): expected a whole number of at least 1, got {bins!r}")
        name = self._head_to_plot(head)
        column = self.heads.index(name)
        lines = [
            (self.positions[p], *_binned(self.confidence[p, column], self.quality[p, column], bins))
            for p in np.flatnonzero(self.exists[:, column])
        ]
        own = None
        if self.final_confidence is not None:
            own = ("full model", *_binned(self.final_confidence, self.final_quality, bins))
        axes = plots.own_axes() if ax is None else ax
        spread = np.concatenate([x for _, x, _ in (*lines, *([own] if own else []))])
        if spread.size and spread.min() >= 0 and spread.max() <= 1:
            plots.diagonal(axes)
        plots.draw_confidences(axes, lines, own)
        plots.set_labels(axes, "mean confidence", "mean quality", f"exits of head {name}")
        return axes

    def _head_to_plot(self, head: str | None) -> str:
        there = [name for name, here in zip(self.heads, self.exists.T, strict=True) if here.any()]
        if not there or not self.samples:
            missing = "samples" if there else "exits"
            raise InputError(f"plot(): expected records of exits, got none of any {missing}; record again")
        if head is not None and head not in there:
            raise InputError(
                f"plot(head=...): expected a head that there is, got {head!r}; known: {', '.join(there)}"
            )
        return there[0] if head is None else head

    @property
    def samples(self) -> int:
        """N, the number of samples."""
        return int(self.final_quality.size)

    def subset(self, index: npt.ArrayLike) -> ExitRecords:
        """Records of the samples that ``index`` (integers or a boolean mask over N) picks, in its order.

        Raises:
            InputError: an index is out of range, or ``index`` is neither integers nor a mask of length N.
        """
        pick = np.asarray(index)
        if pick.dtype == bool and pick.shape == (self.samples,):
            pick = np.flatnonzero(pick)
        elif pick.ndim != 1 or (pick.size and pick.dtype.kind not in "iu"):
            raise InputError(
                f"subset(): expected integers or a boolean mask of shape ({self.samples},), "
                f"got {pick.dtype} of shape {pick.shape}"
            )
        pick = pick.astype(np.int64)
        if pick.size and not (-self.samples <= pick.min() and pick.max() < self.samples):
            raise InputError(
                f"subset(): expected indices below {self.samples}, got {pick.min()} to {pick.max()}"
            )
        arrays = {name: getattr(self, name) for name in (*_ARRAYS, "groups")}
        return replace(
            self,
            **{k: v[pick] if v.ndim == 1 else v[:, :, pick] for k, v in arrays.items() if v is not None},
        )

    def split(self, fractions: Sequence[float], seed: int = 0) -> tuple[ExitRecords, ...]:
        """Disjoint random parts of the given sizes.

        Args:
            fractions: positive, of sum at most 1; rounded so that a sum of 1 uses every sample.
            seed: of the permutation.

        Raises:
            InputError: a fraction is not positive, or they add up to more than 1.
        """
        fractions = [float(fraction) for fraction in fractions]
        if not fractions or not min(fractions) > 0 or not sum(fractions) <= 1 + 1e-9:  # NaN fails too
            raise InputError(f"split(): expected positive fractions of sum at most 1, got {tuple(fractions)}")
        order = np.random.default_rng(seed).permutation(self.samples)
        borders = np.round(np.cumsum((0.0, *fractions)) * self.samples).astype(int)
        return tuple(self.subset(np.sort(order[start:stop])) for start, stop in pairwise(borders))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            StorageError: the folder cannot be written or is full.
        """
        arrays = {name: getattr(self, name) for name in (*_ARRAYS, "exists", "groups")}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        meta = {
            "positions": self.positions,
            "heads": self.heads,
            "meta": None if self.meta is None else dict(self.meta),
        }
        save_arrays(Path(path), arrays, RECORDS_FORMAT, VERSION, meta)

    @classmethod
    def load(cls, path: str | Path) -> ExitRecords:
        """Read what ``save`` wrote.

        Raises:
            ArtifactError: missing, truncated, changed, or of a newer version.
        """
        return cls._of(Path(path), *load_arrays(Path(path), RECORDS_FORMAT, VERSION))

    @classmethod
    def parse(cls, path: Path, content: bytes) -> ExitRecords:
        """``load`` of the bytes of a file that has been read; ``path`` is where, for errors."""
        return cls._of(path, *parse_arrays(path, content, RECORDS_FORMAT, VERSION))

    @classmethod
    def _of(cls, path: Path, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> ExitRecords:
        fields: dict[str, Any] = {**arrays}
        try:
            return cls(positions=meta["positions"], heads=meta["heads"], meta=meta["meta"], **fields)
        except (KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
            raise ArtifactError(f"{path}: not a set of records ({error}); record again") from error


def _whole_numbers(values: npt.ArrayLike, samples: int) -> npt.NDArray[np.int64]:
    groups = np.asarray(values)
    if groups.shape != (samples,) or groups.dtype.kind not in "iu":
        raise InputError(
            f"ExitRecords.groups: expected whole numbers of shape ({samples},), one for each sample, got "
            f"{groups.dtype} of shape {groups.shape}"
        )
    return groups.astype(np.int64)


def _binned(confidence: Floats32, quality: Floats32, bins: int) -> tuple[Floats, Floats]:
    """Means of confidence and quality (N,) in at most ``bins`` bins of equal size; ties share a bin."""
    there = np.isfinite(confidence)
    x, y = confidence[there].astype(np.float64), quality[there].astype(np.float64)
    if not x.size:
        return x, y
    borders = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    where = np.searchsorted(borders, x, side="right")
    count = np.bincount(where)
    held = count > 0
    return np.bincount(where, x)[held] / count[held], np.bincount(where, y)[held] / count[held]
