"""Who leaves is one rule, for one sample as for a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import small
from offramp import Engine, ExitChoice, ExitConfig
from offramp.core import leaves as leaves_of_array
from offramp.runtime.compaction import leaves, leaving

CONFIDENCES = (0.4, 0.5, 0.6, math.inf, -math.inf, math.nan)


@pytest.mark.parametrize("threshold", [0.5, -math.inf, math.inf])
def test_one_sample_a_batch_and_an_array_agree(threshold: float) -> None:
    wanted = leaves_of_array(np.array(CONFIDENCES, np.float32), np.float32(threshold)).tolist()
    assert [leaves(float(np.float32(each)), threshold) for each in CONFIDENCES] == wanted
    assert leaving(torch.tensor(CONFIDENCES), threshold).tolist() == wanted


def test_a_confidence_at_the_threshold_stays() -> None:
    net, x = small.network(heads=("linear",)), small.inputs(count=1)
    found, _ = net.forward_all(x)
    threshold = float(net.confidence_of(1, 0)(found[1, 0]))
    for choice, position in ((threshold, len(net.positions)), (np.nextafter(np.float32(threshold), -1), 1)):
        config = ExitConfig([ExitChoice(net.positions[1], "linear", float(choice))])
        assert Engine(net, config)(x).position.tolist() == [position]
