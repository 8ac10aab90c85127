"""The frontier: prepared configurations from cheapest to best, and the choice among them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from offramp.core import plots
from offramp.core.certificate import Expected, plain_number
from offramp.core.config import VERSION, ExitConfig, config_from_dict, config_to_dict
from offramp.core.costs import CostTable, single_exits
from offramp.core.display import data_frame, evenly, html_table, percent, points, points_interval
from offramp.core.fields import is_count, mirrored
from offramp.core.records import ExitRecords
from offramp.errors import ArtifactError, FewSamplesWarning, InputError
from offramp.storage import dump_document, parse_document

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

Floats = npt.NDArray[np.float64]

_PER_CENT = {"max_cost": 5.0, "max_drop": 1.0, "min_quality": 1.0}
"""What no fraction exceeds: quality lies in [0, 1], and exits hardly make a model cost five times as much."""

FRONTIER_FORMAT = "offramp.frontier"


class Frontier(Sequence[ExitConfig]):
    """Configurations from cheapest to best; none costs more and is no better than another.

    Args:
        configs: the configurations, each with ``expected`` figures, cheapest first.
        by_tradeoff: the configuration found for each lambda searched (these may coincide or be dominated).
        meta: what made it (method, regularisation, number of samples); plain JSON values.
        between: not part of the sequence: configurations with the quality of a cheaper one, as far as the
            samples can tell, on the way to the next better one. ``at(max_cost=...)`` spends budgets on them.
        max_exits: how many enabled exits the search allowed; None: any number. Files keep it in
            ``meta["max_exits"]``, and it is read from there.

    Raises:
        InputError: no configuration, one without figures, not in strictly rising cost and quality, or a
            lambda that is not finite.
    """

    def __init__(
        self,
        configs: Iterable[ExitConfig],
        by_tradeoff: Mapping[float, ExitConfig] | None = None,
        meta: Mapping[str, Any] | None = None,
        between: Iterable[ExitConfig] = (),
        max_exits: int | None = None,
    ) -> None:
        self._configs = tuple(configs)
        self.between = tuple(between)
        self.by_tradeoff: Mapping[float, ExitConfig] = MappingProxyType(dict(by_tradeoff or {}))
        self.max_exits, meta = mirrored(
            "Frontier.max_exits",
            max_exits,
            dict(meta or {}),
            "max_exits",
            _is_count,
            "a whole number of at least 0",
        )
        self.meta: Mapping[str, Any] = MappingProxyType(dict(meta or {}))
        if not self._configs:
            raise InputError("Frontier: expected at least one configuration, got none")
        if not all(map(math.isfinite, self.by_tradeoff)):
            raise InputError(f"Frontier.by_tradeoff: expected finite lambdas, got {list(self.by_tradeoff)}")
        self._expected = [_figures(config) for config in self._configs]
        every = [*self._expected, *map(_figures, self.between)]
        if len({(e.full_quality, e.full_cost, e.samples) for e in every}) > 1:
            raise InputError("Frontier: expected figures from one set of samples and costs, got several")
        for cheap, costly in pairwise(self._expected):
            if not (cheap.cost < costly.cost and cheap.quality < costly.quality):
                raise InputError(
                    "Frontier: expected strictly rising cost and quality, got "
                    f"({cheap.cost:g}, {cheap.quality:g}) before ({costly.cost:g}, {costly.quality:g})"
                )

    @classmethod
    def of(
        cls,
        candidates: Iterable[ExitConfig],
        by_tradeoff: Mapping[float, ExitConfig] | None = None,
        meta: Mapping[str, Any] | None = None,
        between: Iterable[ExitConfig] = (),
    ) -> Frontier:
        """Build a frontier from any candidates with figures: the dominated ones are dropped."""
        ranked = sorted(candidates, key=lambda c: (_figures(c).cost, -_figures(c).quality, len(c.choices)))
        kept: list[ExitConfig] = []
        for config in ranked:
            if not kept or _figures(config).quality > _figures(kept[-1]).quality:
                kept.append(config)
        return cls(kept, by_tradeoff, meta, between)

    @property
    def full_model(self) -> ExitConfig:
        """The configuration without exits (it is in the sequence itself only if nothing beats it)."""
        first = self._expected[0]
        figures = replace(first, quality=first.full_quality, cost=first.full_cost, drop_interval=None)
        if not first.in_sample:
            figures = replace(figures, in_sample_quality=first.full_quality, drop_interval=(0.0, 0.0))
        return ExitConfig(expected=figures)

    @property
    def in_sample(self) -> bool:
        """Whether ``expected`` are figures of the samples that the configurations were chosen on."""
        return any(figures.in_sample for figures in self._expected)

    def __len__(self) -> int:
        return len(self._configs)

    @overload
    def __getitem__(self, index: int) -> ExitConfig: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ExitConfig, ...]: ...
    def __getitem__(self, index: int | slice) -> ExitConfig | tuple[ExitConfig, ...]:
        return self._configs[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frontier):
            return NotImplemented
        parts = [(f._configs, f.by_tradeoff, f.between, f.meta) for f in (self, other)]
        return parts[0] == parts[1]

    def __hash__(self) -> int:
        return hash(self._configs)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles, which cannot hold its read-only mappings."""
        parts = (self._configs, dict(self.by_tradeoff), dict(self.meta), self.between, self.max_exits)
        return type(self), parts

    def __repr__(self) -> str:
        low, high = self._expected[0], self._expected[-1]
        return (
            f"Frontier({len(self)} configurations, cost {low.relative_cost:.1%} to {high.relative_cost:.1%}, "
            f"quality {low.quality:.4f} to {high.quality:.4f}{', in-sample' if self.in_sample else ''})"
        )

    def _repr_html_(self) -> str:
        """A table of at most a dozen configurations, evenly spread."""
        first = self._expected[0]
        kind = "in-sample" if self.in_sample else "promised"
        rows = [
            (
                at,
                percent(figures.relative_cost),
                percent(figures.quality),
                points(figures.drop),
                points_interval(figures.drop_interval),
                len(self[at].choices),
            )
            for at, figures in enumerate(self._expected)
            if at in evenly(len(self))
        ]
        caption = (
            f"Frontier of {len(self)} configurations, figures {figures_come_from(self)}; full model "
            f"{percent(first.full_quality)}; drop in points"
        )
        columns = ("no.", "cost", f"quality, {kind}", "drop", "95% interval of drop", "exits")
        return html_table(caption, columns, rows, total=len(self))

    def to_frame(self) -> DataFrame:
        """A pandas DataFrame with one row per configuration, numbered as in the frontier.

        Columns: ``relative_cost`` (fraction of the full model's), ``cost``, ``quality`` and ``drop`` (in
        [0, 1], promised for new samples unless ``in_sample``), ``drop_low`` and ``drop_high`` (95 % interval,
        NaN where there is none), ``in_sample_quality``, ``in_sample``, ``exits`` (how many are enabled),
        ``positions`` (where they are, separated by commas), ``tradeoff`` (lambda, NaN where there is none)
        and ``certified``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame([_row(config) for config in self], "index")

    def plot(
        self,
        records: ExitRecords | None = None,
        costs: CostTable | None = None,
        chosen: ExitConfig | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw quality against relative cost, both in percent.

        The line are the configurations, the band the 95 % intervals of what new samples keep, a thin dashed
        line what the search samples kept, the star the full model.

        Args:
            records: with ``costs``, marks each exit on its own, taken by every one of these samples.
            costs: of the same positions and heads.
            chosen: a configuration to put a ring around, such as ``frontier.at(max_drop=0.005)``.
            ax: matplotlib axes to draw on; None makes a new pyplot figure, which a notebook shows.

        Returns:
            The axes.

        Raises:
            InputError: one of records and costs without the other, of another shape, or without samples; or
                ``chosen`` has no figures.
            MissingExtraError: matplotlib is not installed.
        """
        if (records is None) != (costs is None):
            raise InputError("plot(): expected records and costs together, got one of them; give both")
        if chosen is not None and (not isinstance(chosen, ExitConfig) or chosen.expected is None):
            raise InputError(
                "plot(chosen=...): expected a configuration with figures, such as "
                f"frontier.at(max_drop=0.005), got {chosen!r}"
            )
        alone = None if records is None or costs is None else single_exits(records, costs)
        axes = plots.own_axes() if ax is None else ax
        view = self._draw(axes)
        if alone is not None and records is not None:
            plots.draw_single_exits(axes, 100 * alone[0], 100 * alone[1], view, records.heads)
        axes.set(xlim=view[0], ylim=view[1])
        if chosen is not None and chosen.expected is not None:
            figures = chosen.expected
            plots.draw_ring(axes, 100 * figures.relative_cost, 100 * figures.quality, "chosen")
        plots.set_labels(axes, "cost (% of the full model)", "quality (%)")
        plots.legend(axes)
        return axes

    def _draw(self, axes: Axes) -> plots.Window:
        """The curves of the configurations and the full model; the limits around them."""
        curves = dial_curves(self)
        if self.in_sample:
            label = plots.IN_SAMPLE
        else:
            label = "promised for new samples"
            plots.draw_in_sample(axes, curves["cost"], curves["in_sample"])
        if np.isfinite(curves["interval"]).any():
            plots.draw_band(axes, curves["cost"], curves["interval"], "95% interval")
        plots.draw_configurations(axes, curves["cost"], curves["quality"], label)
        plots.draw_full_model(axes, 100.0, 100 * self._expected[0].full_quality, "full model")
        reached = [np.ravel(curves[name]) for name in ("quality", "in_sample", "interval")]
        values = np.concatenate([*reached, [100 * self._expected[0].full_quality]])
        return plots.window(np.append(curves["cost"], 100.0), values)

    def at(
        self,
        *,
        max_cost: float | None = None,
        max_drop: float | None = None,
        min_quality: float | None = None,
        tradeoff: float | None = None,
    ) -> ExitConfig:
        """Pick one configuration by exactly one criterion, by the ``expected`` figures.

        Of a frontier that ``search`` makes by default, ``max_drop`` is a promise: in the mean over draws of
        the search samples, new samples lose at most that. It never fails for a drop of at least 0, but the
        answer may be the full model; a ``FewSamplesWarning`` says so where samples are too few.

        Args:
            max_cost: a fraction of the full model's cost; the best configuration within it, and of equally
                good ones (``between``) the one that spends most of it.
            max_drop: an absolute difference in mean quality (0.005 is half a point); the cheapest within it.
            min_quality: mean quality; the cheapest configuration that reaches it.
            tradeoff: a lambda in the searched range; the configuration of the nearest one searched.

        Raises:
            InputError: not exactly one criterion, no number, or nothing in the frontier meets it (the range
                is named).
        """
        names = ("max_cost", "max_drop", "min_quality", "tradeoff")
        values = (max_cost, max_drop, min_quality, tradeoff)
        given = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
        if len(given) != 1:
            got = sorted(name for name, _ in given) or "none"
            raise InputError(f"at(): expected exactly one of {', '.join(names)}; got {got}")
        [(name, value)] = given
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"at({name}={value!r}): expected a number; 0.005 of max_drop is half a point")
        most = _PER_CENT.get(name, math.inf)
        if most < value < math.inf:
            raise InputError(
                f"at({name}={value}): expected a fraction, not per cent; give {float(value) / 100:.4g} for "
                f"{value} per cent"
            )
        if name == "max_cost":
            return self._within_cost(value)
        if name == "tradeoff":
            return self._nearest_tradeoff(value)
        quality = self._expected[0].full_quality - value if name == "max_drop" else value
        config = self._reaching(quality, f"{name}={value}")
        if name == "max_drop" and value > 0 and not config.choices:
            self._warn_of_few_samples(value)
        return config

    def _warn_of_few_samples(self, drop: float) -> None:
        """Say so where only the full model was found within a drop, for want of samples."""
        samples, told = self._expected[0].samples, "search samples"
        groups = self.meta.get("groups")
        if isinstance(groups, int):
            samples, told = groups, "groups of search samples"
        if not self.in_sample and samples * drop < 1:
            warnings.warn(
                f"at(max_drop={drop}): the full model, because {samples:,} {told} hold fewer than "
                f"one expected loss at a drop of {100 * drop:.3g} points; search on at least "
                f"{math.ceil(1 / drop):,}, or allow more",
                FewSamplesWarning,
                stacklevel=3,
            )

    def _within_cost(self, budget: float) -> ExitConfig:
        fits = [c for c, e in zip(self._configs, self._expected, strict=True) if e.relative_cost <= budget]
        if not fits:
            low, high = (self._expected[i].relative_cost for i in (0, -1))
            raise InputError(
                f"at(max_cost={budget}): costs run from {low:.4g} to {high:.4g} of the full model's; "
                f"ask for {low:.4g} or more"
            )
        best = _figures(fits[-1])
        ties = [c for c in self.between if _figures(c).quality == best.quality]
        spent = [c for c in ties if best.relative_cost < _figures(c).relative_cost <= budget]
        return max(spent, key=lambda c: _figures(c).cost, default=fits[-1])

    def _reaching(self, quality: float, criterion: str) -> ExitConfig:
        tolerance = 1e-12  # full_quality - max_drop is rounded once; a drop of exactly max_drop still counts
        for config, figures in zip(self._configs, self._expected, strict=True):
            if figures.quality >= quality - tolerance:
                return config
        low, best = self._expected[0], self._expected[-1]
        raise InputError(
            f"at({criterion}): quality runs from {low.quality:.4g} to {best.quality:.4g} "
            f"(full model {low.full_quality:.4g}); ask for less"
        )

    def _nearest_tradeoff(self, tradeoff: float) -> ExitConfig:
        if not self.by_tradeoff:
            raise InputError(
                "at(tradeoff=...): this frontier holds no lambda values; use max_cost or max_drop"
            )
        low, high = min(self.by_tradeoff), max(self.by_tradeoff)
        if not low <= tradeoff <= high:
            raise InputError(
                f"at(tradeoff={tradeoff}): searched from {low:g} to {high:g}; ask within or search again"
            )
        return self.by_tradeoff[min(self.by_tradeoff, key=lambda known: abs(known - tradeoff))]

    def with_certificate(self, config: ExitConfig) -> Frontier:
        """A frontier in which the configuration with the same choices carries this one's certificate.

        Raises:
            InputError: no configuration of the frontier has these choices.
        """
        if all(own.choices != config.choices for own in self._configs):
            raise InputError(
                "with_certificate(): expected a configuration of this frontier, got other choices; "
                "certify this frontier"
            )

        def updated(own: ExitConfig) -> ExitConfig:
            same = own.choices == config.choices
            return replace(own, certificate=config.certificate) if same else own

        by_tradeoff = {lam: updated(own) for lam, own in self.by_tradeoff.items()}
        configs = map(updated, self._configs)
        return Frontier(configs, by_tradeoff, self.meta, self.between, self.max_exits)

    def to_json(self) -> str:
        """Serialise all configurations, the ones by lambda and the meta data."""
        return dump_document(
            {
                "format": FRONTIER_FORMAT,
                "version": VERSION,
                "configs": [config_to_dict(c) for c in self._configs],
                "by_tradeoff": [[t, config_to_dict(c)] for t, c in self.by_tradeoff.items()],
                "meta": dict(self.meta),
                "between": [config_to_dict(c) for c in self.between],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Frontier:
        """Read what ``to_json`` wrote.

        Raises:
            ArtifactError: not JSON, another format, a newer version, or a field is missing or wrong.
        """
        document = parse_document(text, FRONTIER_FORMAT, VERSION)
        try:
            configs = [config_from_dict(item) for item in document["configs"]]
            by_tradeoff = {plain_number(t): config_from_dict(item) for t, item in document["by_tradeoff"]}
            dump_document(document["meta"])  # refuses NaN, which JSON has no value for but Python reads
            between = [config_from_dict(item) for item in document.get("between", [])]
            return cls(configs, by_tradeoff, document["meta"], between)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"frontier: damaged, {type(error).__name__}: {error}; write it again"
            ) from error


def figures_come_from(frontier: Frontier) -> str:
    """Where the expected figures come from, in words that follow "figures"."""
    figures = frontier[0].expected
    samples = 0 if figures is None else figures.samples
    if frontier.in_sample:
        return f"of the {samples:,} search samples themselves (in-sample: optimistic)"
    return f"promised for new samples, from {samples:,} search samples"


def dial_curves(frontier: Frontier) -> dict[str, Floats]:
    """Figures of M configurations in percent: "cost", "quality" and "in_sample" (M,), "interval" (M, 2).

    Cost is relative to the full model's, quality as ``expected``, "in_sample" of the search samples; the
    interval is that of quality, NaN where there is none.
    """
    every = [figures for config in frontier if (figures := config.expected)]
    nothing = (math.nan, math.nan)
    return {
        "cost": 100 * np.array([each.relative_cost for each in every]),
        "quality": 100 * np.array([each.quality for each in every]),
        "in_sample": 100 * np.array([each.full_quality - each.in_sample_drop for each in every]),
        "interval": 100 * np.array([each.quality_interval or nothing for each in every]),
    }


def _row(config: ExitConfig) -> dict[str, Any]:
    """One row of ``to_frame``."""
    figures = _figures(config)
    low, high = figures.drop_interval or (math.nan, math.nan)
    return {
        "relative_cost": figures.relative_cost,
        "cost": figures.cost,
        "quality": figures.quality,
        "drop": figures.drop,
        "drop_low": low,
        "drop_high": high,
        "in_sample_quality": figures.full_quality - figures.in_sample_drop,
        "in_sample": figures.in_sample,
        "exits": len(config.choices),
        "positions": ", ".join(choice.position for choice in config.choices),
        "tradeoff": math.nan if config.tradeoff is None else config.tradeoff,
        "certified": config.certificate is not None,
    }


def _is_count(value: object) -> bool:
    return isinstance(value, int) and is_count(value)


def _figures(config: ExitConfig) -> Expected:
    if config.expected is None:
        raise InputError("Frontier: expected configurations with figures; got one without, evaluate it first")
    return config.expected
