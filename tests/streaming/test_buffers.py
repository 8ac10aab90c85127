"""The memory between two spans: rows keep their order and strides, and what is taken leaves."""

from __future__ import annotations

import pytest
import torch

from offramp.streaming.buffer import RowBuffer, StageQueue


@pytest.mark.parametrize("order", ["rows", "channels-last", "transposed", "flat", "scalars"])
def test_a_row_buffer_keeps_rows_and_their_order_in_memory(order: str) -> None:
    value = {
        "rows": torch.randn(6, 3, 4, 5),
        "channels-last": torch.randn(6, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(6, 4, 3).transpose(1, 2),
        "flat": torch.randn(6, 7),
        "scalars": torch.randn(6),
    }[order]
    buffer = RowBuffer(value, 9)
    buffer.write(2, value, torch.tensor([4, 1, 5]))
    buffer.write(5, value[:2], None)
    wanted = value[[4, 1, 5, 0, 1]]
    got = buffer.read(2, 5)
    assert torch.equal(got, wanted)
    assert got.stride() == value.stride()
    buffer.to_front(4, 3)
    assert torch.equal(buffer.read(0, 3), wanted[2:])


def test_a_row_buffer_takes_rows_in_another_order_in_memory() -> None:
    value = torch.randn(4, 3, 2, 2)
    buffer = RowBuffer(value, 8)
    buffer.write(0, value.to(memory_format=torch.channels_last), torch.tensor([3, 0]))
    buffer.write(2, value[:1].expand(3, 3, 2, 2), None)
    assert torch.equal(buffer.read(0, 5), value[[3, 0, 0, 0, 0]])


def test_a_stage_queue_moves_to_the_front_of_its_memory() -> None:
    class Anybody:
        since = 0.0

    stage, pushed, taken = StageQueue(1, (True, False), 4), list[float](), list[float]()
    for turn in range(20):
        value = torch.arange(4.0)[:, None] + 10 * turn
        rows = torch.tensor([0, 2, 3][: 1 + turn % 3])
        stage.push([Anybody()] * len(rows), (value, torch.tensor([turn])), rows)
        pushed += value[rows, 0].tolist()
        while stage.count >= 4 or (turn == 19 and stage.count):
            people, (got, shared) = stage.take(4)
            assert len(people) == len(got)
            assert shared.item() == turn
            taken += got[:, 0].tolist()
    assert taken == pushed
