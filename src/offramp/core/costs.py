"""Costs: what each segment and each head costs, in one unit. Search and evaluation see only this table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.core.batch_costs import BatchCosts
from offramp.core.fields import check_arguments, check_costs, freeze, is_number, mirrored
from offramp.core.records import ExitRecords
from offramp.errors import ArtifactError, InputError
from offramp.storage import dump_document, parse_document

Floats = npt.NDArray[np.float64]

COSTS_FORMAT = "offramp.costs"
VERSION = 1


@dataclass(frozen=True, eq=False)
class CostTable:
    """Cost per sample of the backbone up to each position, and of each head.

    Args:
        backbone: (P+1,) cumulative; ``backbone[0] == 0`` (the input), ``backbone[-1]`` is the full model.
        heads: (P, C) cost of head c at position p; 0 where there is no head.
        unit: "macs", "seconds", "joules" or any other name.
        meta: plain JSON values (device, batch size, how it was measured).
        by_batch: where batches shrink on the way and cost does not shrink with them, the cost of a call by
            batch size. ``evaluate`` goes by it; ``search`` by the costs per sample at the full batch.
        eager: where costs were measured, the cost per sample of the unmodified model called as it is:
            ``evaluate(...).cost / costs.eager`` predicts the share of its time. Files keep it in
            ``meta["plain"]``, and it is read from there.

    Raises:
        InputError: shapes disagree, a value is negative or not finite, or ``backbone`` falls.
    """

    backbone: npt.NDArray[np.float64]
    heads: npt.NDArray[np.float64]
    unit: str
    meta: Mapping[str, Any] | None = None
    by_batch: BatchCosts | None = None
    eager: float | None = None

    def __post_init__(self) -> None:
        freeze(
            self,
            backbone=np.asarray(self.backbone, np.float64),
            heads=np.asarray(self.heads, np.float64),
        )
        if self.backbone.ndim != 1 or self.backbone.size < 2 or self.heads.ndim != 2:
            raise InputError(
                "CostTable: expected backbone (P+1,) and heads (P, C), "
                f"got {self.backbone.shape} and {self.heads.shape}"
            )
        if len(self.heads) != len(self.backbone) - 1:
            raise InputError(
                f"CostTable.heads: expected {len(self.backbone) - 1} rows, got {len(self.heads)}"
            )
        check_costs(self, "backbone", "heads")
        if self.backbone[0] != 0 or (np.diff(self.backbone) < 0).any() or self.backbone[-1] <= 0:
            raise InputError(f"CostTable.backbone: expected 0 first, then rising costs, got {self.backbone}")
        eager, meta = mirrored(
            "CostTable.eager", self.eager, self.meta, "plain", _is_cost, "a finite number above 0"
        )
        freeze(self, eager=eager, meta=meta)
        if self.by_batch is not None:
            wanted = self.backbone.shape, self.heads.shape
            got = self.by_batch.backbone.shape[1:], self.by_batch.heads.shape[1:]
            if got != wanted:
                raise InputError(
                    f"CostTable.by_batch: expected rows of shapes {wanted[0]} and {wanted[1]}, "
                    f"got {got[0]} and {got[1]}"
                )

    @property
    def full(self) -> float:
        """Cost of the full model."""
        return float(self.backbone[-1])

    def __repr__(self) -> str:
        p, c = self.heads.shape
        batches = "" if self.by_batch is None else f", batches of 1 to {self.by_batch.batch_size}"
        return f"CostTable({p} positions, {c} heads, full model {self.full:.4g} {self.unit}{batches})"

    def to_json(self) -> str:
        """Serialise as a versioned JSON document.

        Raises:
            InputError: ``meta`` holds something that JSON has no value for.
        """
        document = {
            "format": COSTS_FORMAT,
            "version": VERSION,
            "backbone": self.backbone.tolist(),
            "heads": self.heads.tolist(),
            "unit": self.unit,
            "meta": None if self.meta is None else dict(self.meta),
        }
        if self.by_batch is not None:
            document["by_batch"] = self.by_batch.to_plain()
        return dump_document(document)

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """Read what ``to_json`` wrote.

        Raises:
            ArtifactError: not JSON, another format, a newer version, or a field is missing or wrong.
        """
        document = parse_document(text, COSTS_FORMAT, VERSION)
        try:
            unit, meta = str(document["unit"]), document["meta"]
            if not (meta is None or isinstance(meta, dict)):
                raise TypeError(f"meta is {meta!r}")
            batches = document.get("by_batch")
            table = None if batches is None else BatchCosts(**{k: np.array(v) for k, v in batches.items()})
            return cls(np.array(document["backbone"]), np.array(document["heads"]), unit, meta, table)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, InputError) as error:
            raise ArtifactError(f"costs: damaged ({error}); measure them again") from error


def check_match(records: ExitRecords, costs: CostTable, verb: str = "") -> None:
    """Refuse empty records and a cost table of another network, by an InputError."""
    check_arguments(verb, {"records": (records, ExitRecords), "costs": (costs, CostTable)})
    if records.samples == 0:
        raise InputError("expected records of at least one sample, got none")
    if costs.heads.shape != records.exists.shape:
        raise InputError(
            f"costs are for {costs.heads.shape} (positions, heads), records for {records.exists.shape}; "
            "measure and record the same network"
        )


def single_exits(records: ExitRecords, costs: CostTable) -> tuple[Floats, Floats]:
    """Relative cost and mean quality (P, C) of each exit taken by every sample; NaN where there is none.

    Raises:
        InputError: no samples, or costs of another shape.
    """
    check_match(records, costs)
    paid = (costs.backbone[:-1, None] + costs.heads) / costs.full
    quality = np.full(records.exists.shape, np.nan)
    quality[records.exists] = records.quality[records.exists].mean(axis=1, dtype=np.float64)
    return np.where(records.exists, paid, np.nan), quality


def _is_cost(value: object) -> bool:
    return isinstance(value, (int, float)) and is_number(value, 0) and value > 0
