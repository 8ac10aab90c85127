"""Measured costs equal a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

import offramp
import small
from offramp import measure_cost
from offramp.errors import InputError


def test_macs_equal_a_count_by_hand():
    net = small.network(heads=("linear", "mlp", "conv"), cuts=["stem", "blocks.0", "blocks.2"])
    costs = measure_cost(net)
    stem, block, top = 64 * 6 * 9, 64 * 6 * 6 * 9, 6 * 3
    assert costs.unit == "macs"
    assert costs.backbone.tolist() == [0, stem, stem + block, stem + 3 * block, stem + 3 * block + top]
    linear, mlp = 6 * 3, 6 * 16 * 32 + 32 * 3
    conv = 64 * 6 * 9 + 64 * 6 * 32 + 32 * 16 * 3
    np.testing.assert_array_equal(costs.heads, [[0, 0, 0], *[[linear, mlp, conv]] * 3])
    assert costs.meta == {"batch_size": 1, "device": "meta"}


def test_vectors_and_tokens():
    costs = measure_cost(small.network(small.Vector, heads=("conv", "linear")))
    assert costs.backbone.tolist() == [0, 48, 112, 136]
    assert costs.heads.tolist() == [[0, 0], [0, 24], [0, 24]]  # nothing to convolve over
    costs = measure_cost(small.network(small.Tokens, heads=("linear",), cuts=["layers.0", "layers.1"]))
    assert costs.backbone.tolist() == [0, 5 * 64, 10 * 64, 10 * 64 + 24]


def test_counting_leaves_everything_as_it_was():
    model = small.model().train()
    net = offramp.attach_exits(model, small.inputs()[:2], heads=("conv", "small-plain"))
    net.train()
    before, backbone = small.weights(net), small.weights(model)
    measure_cost(net)
    assert small.same(before, small.weights(net))
    assert small.same(backbone, small.weights(model))
    assert all(part.training for part in (*net.modules(), *model.modules()))


def test_other_units_are_given_not_measured():
    with pytest.raises(InputError, match=r"expected unit='macs', 'seconds' or 'joules', got 'euros'"):
        measure_cost(small.network(small.Vector), unit="euros")
