"""Eval mode of a module that several calls are in at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from offramp import partition
from offramp.graph.modes import eval_mode


def test_the_last_call_out_restores_the_modes() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    module[0].eval()
    first, second = eval_mode(module), eval_mode(module)
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert not any(part.training for part in module.modules())
    second.__exit__()
    assert [part.training for part in module.modules()] == [True, False, True]


def test_it_can_be_entered_again() -> None:
    module = nn.Dropout()
    inside = eval_mode(module)
    for _ in range(2):
        with inside:
            assert not module.training
        assert module.training


class RefusesToTrain(nn.Module):
    """Has gone half of the way to training mode when it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def train(self, mode: bool = True) -> RefusesToTrain:
        self.first.train(mode)
        if mode:
            raise RuntimeError("not any more")
        self.second.train(mode)
        self.training = mode
        return self


def test_a_model_that_fails_on_its_way_to_training_mode_is_left_in_eval_mode() -> None:
    model = RefusesToTrain()
    model.eval()
    with pytest.raises(RuntimeError, match="not any more"):
        partition(model, torch.ones(2, 2))
    assert not any(part.training for part in model.modules())
