"""Copies of networks answer as the originals; engines say what to do instead."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import offramp
import small
from copies import WAYS
from offramp.errors import InputError, OfframpError

NETWORKS = {
    "plain": {},
    "calibrated": {"confidence": "learned"},
    "input exits": {"input_exits": {"given": small.model(seed=5), "raw": "mlp"}, "heads": ("linear",)},
    "regression": {"task": offramp.Regression(scale=[1.0, 2.0, 3.0])},
    "some cuts": {"cuts": ["blocks.1"], "heads": {"blocks.1": ("conv",)}},
}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_answers_the_same(way, options):
    net = small.network(**options)
    x = small.inputs(count=5)
    again = way(net)
    assert again is not net
    assert again.backbone is not net.backbone
    assert (again.positions, again.head_names, again.training) == (
        net.positions,
        net.head_names,
        net.training,
    )
    assert small.same(small.weights(again), small.weights(net))
    (found, full), (wanted, final) = again.forward_all(x), net.forward_all(x)
    assert torch.equal(full, final)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[exit_], wanted[exit_]) for exit_ in wanted)


def test_a_copy_is_of_its_own():
    net = small.network()
    again = copy.deepcopy(net)
    with torch.no_grad():
        for value in (*again.parameters(), *again.backbone.parameters()):
            value.zero_()
    assert any(bool(value.any()) for value in net.parameters())
    assert any(bool(value.any()) for value in net.backbone.parameters())


def test_tokens_with_a_mask_and_keywords():
    net = small.network(small.Tokens, heads=("linear",))
    again, x = pickle.loads(pickle.dumps(net)), small.inputs(small.Tokens, 4)
    assert again.mask_input == net.mask_input
    assert torch.equal(again(x), net(x))


def test_a_network_that_was_changed_by_hand_names_the_way_out():
    net = small.network(heads=("linear",))
    net.heads[1]["linear"] = torch.nn.Linear(3, 3)
    with pytest.raises(
        InputError, match=r"the copy of a network cannot be made: .*write it with offramp.save"
    ):
        copy.deepcopy(net)


@pytest.mark.parametrize("way", [*WAYS.values(), copy.copy], ids=[*WAYS, "copy"])
def test_engines_are_not_copied(way):
    net = small.network(heads=("linear",))
    with offramp.StreamEngine(net) as stream:
        for engine in (stream, offramp.Engine(net), offramp.MultiEngine({"one": net})):
            with pytest.raises(
                OfframpError, match=r"cannot be copied or pickled, for it holds .*; make one in"
            ):
                way(engine)


def test_swapped_arguments_of_engines_are_named():
    net, config = small.network(heads=("linear",)), offramp.ExitConfig()
    for kind in (offramp.Engine, offramp.StreamEngine):
        with pytest.raises(
            InputError, match=r"expected a network from attach_exits, got a ExitConfig: swapped\?"
        ):
            kind(config, net)


def test_swapped_arguments_of_save_and_load_are_named(tmp_path):
    net, model = small.network(heads=("linear",)), small.model()
    costs = offramp.measure_cost(net)
    records = offramp.record_outputs(net, small.loader(), progress=False)
    frontier = offramp.search(records, costs, progress=False)
    swapped = r"save\(\): expected str or Path as the first argument \(path\), got ExitNetwork: swapped\?"
    with pytest.raises(InputError, match=swapped):
        offramp.save(net, tmp_path / "a", frontier, costs)
    with pytest.raises(
        InputError, match=r"save\(\): expected Frontier as the third .*got CostTable: swapped\?"
    ):
        offramp.save(tmp_path / "a", net, costs, frontier)
    with pytest.raises(
        InputError, match=r"load\(\): expected str or Path as the first argument .*: swapped\?"
    ):
        offramp.load(model, tmp_path / "a")
    with pytest.raises(InputError, match=r"load_tasks\(\): expected str or Path as the first argument"):
        offramp.load_tasks(model, tmp_path / "a")
    with pytest.raises(InputError, match=r"expected records by name; give records=\{'search': records\}"):
        offramp.save(tmp_path / "a", net, frontier, costs, records=records)
    with pytest.raises(InputError, match=r"expected ExitRecords as 'search', got CostTable"):
        offramp.save(tmp_path / "a", net, frontier, costs, records={"search": costs})
    with pytest.raises(InputError, match=r"save_tasks\(\): expected Mapping as the second argument"):
        offramp.save_tasks(tmp_path / "a", net, frontier, costs)
    assert list(tmp_path.iterdir()) == []
