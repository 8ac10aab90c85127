"""Eval mode of a module that several calls are in at once."""

from __future__ import annotations

from torch import nn

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
