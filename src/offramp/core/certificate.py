"""What a configuration carries with it besides its exits: figures and what was proven; plain frozen data."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from offramp.core.fields import check_words, freeze, is_count, is_number
from offramp.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Expected:
    """What a configuration is expected to reach on new samples, or what it reached on those it was chosen on.

    By default ``search`` sets ``quality`` so that, in the mean over draws of the search samples, new samples
    lose at most ``drop``; the figure of the search samples themselves stands beside it. Where there is no
    ``in_sample_quality``, ``quality`` is that figure itself: optimistic, because the configuration was chosen
    for it.

    Args:
        quality: mean quality, in [0, 1].
        cost: mean cost per sample, in the unit of the cost table.
        full_quality: mean quality of the full model on the search samples, in [0, 1].
        full_cost: cost of the full model.
        samples: how many samples the search had.
        drop_interval: a 95 % interval of the mean quality that new samples lose against the full model.
        in_sample_quality: mean quality on the search samples, where ``quality`` is not that.

    Raises:
        InputError: a figure is not finite, the full model's cost is not positive, the cost is negative, or
            the interval is not two numbers, the lower one first.
    """

    quality: float
    cost: float
    full_quality: float
    full_cost: float
    samples: int
    drop_interval: tuple[float, float] | None = None
    in_sample_quality: float | None = None

    def __post_init__(self) -> None:
        figures = (self.quality, self.cost, self.full_quality, self.full_cost)
        if not (all(map(math.isfinite, figures)) and self.full_cost > 0 and self.cost >= 0):
            raise InputError(
                f"Expected: expected finite figures and costs above 0, got quality {self.quality!r} and cost "
                f"{self.cost!r}; for the full model {self.full_quality!r} and {self.full_cost!r}"
            )
        if self.in_sample_quality is not None and not is_number(self.in_sample_quality):
            raise InputError(
                "Expected.in_sample_quality: expected a finite number or None, got "
                f"{self.in_sample_quality!r}"
            )
        if self.drop_interval is not None:
            ends = tuple(self.drop_interval) if isinstance(self.drop_interval, Iterable) else ()
            if len(ends) != 2 or not all(map(is_number, ends)) or ends[0] > ends[1]:
                raise InputError(
                    "Expected.drop_interval: expected two numbers, the lower one first, or None, got "
                    f"{self.drop_interval!r}"
                )
            freeze(self, drop_interval=ends)

    @property
    def drop(self) -> float:
        """Mean quality lost against the full model; negative where the configuration is better."""
        return self.full_quality - self.quality

    @property
    def relative_cost(self) -> float:
        """Cost as a fraction of the full model's."""
        return self.cost / self.full_cost

    @property
    def in_sample(self) -> bool:
        """Whether ``quality`` is the figure of the samples that the configuration was chosen on."""
        return self.in_sample_quality is None

    @property
    def in_sample_drop(self) -> float:
        """Mean quality lost on the search samples: optimistic."""
        return self.drop if self.in_sample_quality is None else self.full_quality - self.in_sample_quality

    @property
    def quality_interval(self) -> tuple[float, float] | None:
        """The full model's quality on the search samples, less either end of ``drop_interval``."""
        if self.drop_interval is None:
            return None
        low, high = self.drop_interval
        return self.full_quality - high, self.full_quality - low


def figures_in_words(figures: Expected) -> str:
    """Cost and quality, and what kind of figure the quality is."""
    kind = "in-sample" if figures.in_sample else "promised"
    return f"cost {figures.relative_cost:.1%}, quality {figures.quality:.4f} {kind}"


@dataclass(frozen=True)
class Guarantee:
    """One bound that was proven to hold.

    Args:
        risk: what is bounded, in words that follow "the"; "drop of quality" for the drop.
        bound: that its mean on new samples does not exceed.
        samples: how many samples the test could use.
        observed: the mean on those.
        test: its name.
        p_value: of "the mean is above the bound", in [0, 1].

    Raises:
        InputError: a name is empty, a number is not finite, or samples or p-value are out of range.
    """

    risk: str
    bound: float
    samples: int
    observed: float
    test: str
    p_value: float

    def __post_init__(self) -> None:
        check_words(self, "words", "risk", "test")
        _check_count("Guarantee.samples", self.samples)
        numbers = (self.bound, self.observed, self.p_value)
        if not (all(map(math.isfinite, numbers)) and 0 <= self.p_value <= 1):
            raise InputError(
                "Guarantee: expected finite numbers and a p-value in [0, 1], got bound "
                f"{self.bound!r}, observed {self.observed!r} and p-value {self.p_value!r}"
            )


@dataclass(frozen=True)
class Certificate:
    """What holds for a configuration on new samples, all at once, with probability at least 1 - delta.

    The probability is over the draw of the ``samples`` samples that it was certified on.

    Args:
        delta: the probability of being wrong, in (0, 1).
        samples: how many samples it was certified on.
        quality: what quality meant there: "labels", "agreement" with the full model, or "unknown".
        guarantees: at least one.

    Raises:
        InputError: a value is not as described.
    """

    delta: float
    samples: int
    quality: str
    guarantees: tuple[Guarantee, ...]

    def __post_init__(self) -> None:
        freeze(self, guarantees=tuple(self.guarantees))
        _check_count("Certificate.samples", self.samples)
        if not 0 < self.delta < 1:  # NaN fails too
            raise InputError(f"Certificate.delta: expected a number between 0 and 1, got {self.delta!r}")
        check_words(self, "words", "quality")
        if not self.guarantees or not all(isinstance(each, Guarantee) for each in self.guarantees):
            raise InputError(
                f"Certificate.guarantees: expected at least one Guarantee, got {self.guarantees!r}"
            )

    @property
    def p_value(self) -> float:
        """The largest of the guarantees': all of them hold only if this one does."""
        return max(each.p_value for each in self.guarantees)

    def __str__(self) -> str:
        """In words, as the command line and the report say it."""
        held = "; ".join(
            f"the {each.risk} is at most {each.bound:.4g} ({each.observed + 0.0:.4g} on {each.samples:,} "
            f"samples here; {each.test}, p = {each.p_value:.2g})"
            for each in self.guarantees
        )
        joint = " (all of it jointly)" if len(self.guarantees) > 1 else ""
        meaning = (
            " Quality is agreement with the full model: whatever the labels are, accuracy differs from "
            "the full model's by no more than the share of answers that do."
        )
        return (
            f"With probability at least {round(100 * (1 - self.delta), 3):.5g}% over the draw of the "
            f"{self.samples:,} samples, on new samples of the same distribution{joint}: {held}."
            f"{meaning if self.quality == 'agreement' else ''}"
        )


def expected_from_dict(item: Mapping[str, Any] | None) -> Expected | None:
    """From JSON values, None for None; KeyError, TypeError or ValueError where a field is wrong."""
    if item is None:
        return None
    ends, searched = item.get("drop_interval"), item.get("in_sample_quality")
    given = {
        "samples": int(plain_number(item["samples"])),
        "drop_interval": None if ends is None else tuple(map(plain_number, ends)),
        "in_sample_quality": None if searched is None else plain_number(searched),
    }
    return _from_dict(Expected, {**item, **given})


def certificate_from_dict(item: Mapping[str, Any] | None) -> Certificate | None:
    """From JSON values, None for None; KeyError, TypeError or ValueError where a field is wrong."""
    if item is None:
        return None
    guarantees = [_from_dict(Guarantee, each) for each in item["guarantees"]]
    return _from_dict(Certificate, {**item, "guarantees": guarantees})


def _from_dict(kind: type[T], item: Mapping[str, Any]) -> T:
    """A dataclass of ``kind`` from its fields, numbers checked; other keys are ignored."""
    values = {field.name: item[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    numbers = {
        name: plain_number(values[name]) for name, what in kind.__annotations__.items() if what == "float"
    }
    return kind(**{**values, **numbers})


def plain_number(value: object) -> float:
    """A finite number as JSON has it; TypeError or ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {value!r}")
    if not abs(value) <= sys.float_info.max:  # NaN fails too, and so do whole numbers beyond
        raise ValueError("expected a finite number, got one that is not")
    return float(value)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or not is_count(value, 1):
        raise InputError(f"{name}: expected a whole number of at least 1, got {value!r}")
