"""Configurations: which exit sits where, with what threshold. Frozen data, versioned JSON both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from offramp.core.certificate import (
    Certificate,
    Expected,
    certificate_from_dict,
    expected_from_dict,
    figures_in_words,
    plain_number,
)
from offramp.core.fields import check_words, freeze
from offramp.errors import ArtifactError, InputError
from offramp.storage import dump_document, parse_document

CONFIG_FORMAT = "offramp.config"
VERSION = 1


@dataclass(frozen=True)
class ExitChoice:
    """One enabled exit: a sample leaves at ``position`` when the head's confidence is above ``threshold``.

    The comparison is strict and made in float32. ``-inf`` lets every sample leave, ``+inf`` none.

    Raises:
        InputError: a name is empty or the threshold is NaN or not a number.
    """

    position: str
    head: str
    threshold: float

    def __post_init__(self) -> None:
        check_words(self, "a name", "position", "head")
        try:
            threshold = float(self.threshold)
        except (TypeError, ValueError):
            raise InputError(f"ExitChoice.threshold: expected a number, got {self.threshold!r}") from None
        if math.isnan(threshold):
            raise InputError(
                "ExitChoice.threshold: expected a number, got NaN; use inf to switch an exit off"
            )
        freeze(self, threshold=threshold)


@dataclass(frozen=True)
class ExitConfig:
    """A prepared setting of the dial.

    Args:
        choices: the enabled exits, in order of position (checked where positions are known).
        tradeoff: the lambda it was searched for, if any.
        expected: its figures, if any.
        certificate: what ``certify`` has proven about it, if anything.

    Raises:
        InputError: two choices sit at the same position, something else than an ``ExitChoice`` is given, the
            trade-off is not finite, or the certificate is something else.
    """

    choices: tuple[ExitChoice, ...] = ()
    tradeoff: float | None = None
    expected: Expected | None = None
    certificate: Certificate | None = None

    def __post_init__(self) -> None:
        freeze(self, choices=tuple(self.choices))
        seen: set[str] = set()
        for choice in self.choices:
            if not isinstance(choice, ExitChoice):
                raise InputError(f"ExitConfig.choices: expected ExitChoice objects, got {choice!r}")
            if choice.position in seen:
                raise InputError(
                    f"ExitConfig.choices: position {choice.position!r} occurs twice; keep one exit"
                )
            seen.add(choice.position)
        if self.tradeoff is not None and not math.isfinite(self.tradeoff):
            raise InputError(f"ExitConfig.tradeoff: expected a finite number, got {self.tradeoff!r}")
        if self.certificate is not None and not isinstance(self.certificate, Certificate):
            raise InputError(f"ExitConfig.certificate: expected a Certificate, got {self.certificate!r}")

    def __repr__(self) -> str:
        exits = ", ".join(f"{c.position} {c.head} > {c.threshold:.4g}" for c in self.choices) or "no exits"
        figures = "" if self.expected is None else f"; {figures_in_words(self.expected)}"
        return f"ExitConfig({exits}{figures}{'; certified' if self.certificate else ''})"

    def to_json(self) -> str:
        """Serialise; infinite thresholds become the strings "inf" and "-inf"."""
        return dump_document({"format": CONFIG_FORMAT, "version": VERSION, **config_to_dict(self)})

    @classmethod
    def from_json(cls, text: str) -> ExitConfig:
        """Read what ``to_json`` wrote.

        Raises:
            ArtifactError: not JSON, another format, a newer version, or a field is missing or wrong.
        """
        return config_from_dict(parse_document(text, CONFIG_FORMAT, VERSION))


def config_to_dict(config: ExitConfig) -> dict[str, Any]:
    """Plain JSON values of a configuration."""
    item = asdict(config)
    item["choices"] = list(item["choices"])
    for choice in item["choices"]:
        if not math.isfinite(choice["threshold"]):
            choice["threshold"] = str(choice["threshold"])
    if config.expected is not None:  # older files have no such keys, nor do in-sample figures
        figures = {k: v for k, v in item["expected"].items() if v is not None}
        item["expected"] = {k: list(v) if isinstance(v, tuple) else v for k, v in figures.items()}
    if config.certificate is None:  # older files have no such key, nor do those without a certificate
        del item["certificate"]
    else:
        item["certificate"]["guarantees"] = list(item["certificate"]["guarantees"])
    return item


def config_from_dict(item: Mapping[str, Any]) -> ExitConfig:
    """Inverse of ``config_to_dict``.

    Raises:
        ArtifactError: a field is missing, unknown or of a wrong type.
    """
    try:
        return ExitConfig(
            choices=tuple(
                ExitChoice(c["position"], c["head"], _threshold(c["threshold"])) for c in item["choices"]
            ),
            tradeoff=None if item["tradeoff"] is None else plain_number(item["tradeoff"]),
            expected=expected_from_dict(item["expected"]),
            certificate=certificate_from_dict(item.get("certificate")),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"configuration: damaged, {type(error).__name__}: {error}; write it again"
        ) from error


def _threshold(value: object) -> float:
    return float(str(value)) if value in ("inf", "-inf") else plain_number(value)
