"""A predictor: an engine, how samples become its inputs, and what its outputs are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp.core import ExitConfig, Frontier
from offramp.errors import InputError
from offramp.runtime import Engine
from offramp.serving.prediction import Prediction, label_of
from offramp.sources import SampleReader, to_device_of


class Predictor:
    """Takes samples as people have them, answers labels; made by ``load_predictor``.

    Call it with a PIL image, the path of an image, a text or a pair of texts, a NumPy array or a tensor, or
    with a list of such: what comes back is a ``Prediction``, or a list of them in the same order. Arrays of
    uint8 or uint16 are pixels and are prepared; others are taken as the model takes them, with or without a
    batch dimension.
    """

    def __init__(
        self,
        engine: Engine,
        frontier: Frontier,
        reader: SampleReader,
        names: Mapping[int, str],
        batch_size: int = 64,
    ) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise InputError(f"batch_size: expected a whole number above 0, got {batch_size!r}")
        self.engine, self.frontier, self.names = engine, frontier, dict(names)
        self._reader, self._batch_size = reader, batch_size

    def __repr__(self) -> str:
        known = f"{len(self.names)} named classes" if self.names else "no names of classes"
        return f"Predictor({type(self.engine.net.backbone).__name__}, {known}, {self.engine.config})"

    def use(self, config: ExitConfig | None = None, **criterion: float) -> None:
        """Switch to a configuration: one given, or what ``frontier.at(max_cost=0.5)`` and the like picks.

        Raises:
            InputError: neither or both, a criterion that nothing meets, or another network's configuration.
        """
        if (config is None) == (not criterion):
            raise InputError(
                "use: expected a configuration, or one of max_cost, max_drop, min_quality, tradeoff"
            )
        self.engine.use(self.frontier.at(**criterion) if config is None else config)

    def __call__(self, samples: Any) -> Any:
        """Answer one sample with a ``Prediction``, or a list of them with a list.

        Raises:
            InputError: a sample cannot be read, or is not what the model takes.
        """
        listed, alone = self._reader.samples(samples)
        found: list[Prediction] = []
        for start in range(0, len(listed), self._batch_size):
            found += self._answers(listed[start : start + self._batch_size])
        return found[0] if alone else found

    def _answers(self, samples: list[Any]) -> list[Prediction]:
        net = self.engine.net
        inputs = to_device_of(net.backbone, self._reader.batch(samples))
        answer = self.engine(inputs)
        outputs = answer.outputs.float().cpu().numpy()
        places = (*net.positions, "output")
        found = []
        for values, place, confidence in zip(
            outputs, answer.position.tolist(), answer.confidence.tolist(), strict=True
        ):
            label, probability = label_of(net.task.name, values, self.names, net.task.activation)
            found.append(
                Prediction(
                    label=label,
                    probability=probability,
                    position=places[place],
                    confidence=confidence,
                    outputs=values,
                )
            )
        return found
