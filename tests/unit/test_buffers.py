"""The mean of buffers, without processes: what each type becomes, what is left alone, and the way back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.training.buffers import kinds, put_back, show_mean


def client(**buffers: Tensor) -> nn.Module:
    module = nn.Module()
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer)
    return module


def show(clients: list[nn.Module], index: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """What client ``index`` does, with the others' part made up; also the messages that it sent."""
    dtypes = dict.fromkeys(buffer.dtype for buffer in clients[0].buffers())
    sent: list[Tensor] = []

    def gather_hashes(own: list[str]) -> list[list[str]]:
        everyone = [[hash_tensors([buffer]) for buffer in module.buffers()] for module in clients]
        assert everyone[index] == own
        return everyone

    def all_gather(own: Tensor) -> Tensor:
        sent.append(own)
        assert own.dtype in dtypes
        return torch.stack([different(module, clients, own.dtype) for module in clients])

    return show_mean(clients[index], gather_hashes, all_gather), sent


def different(module: nn.Module, clients: list[nn.Module], dtype: torch.dtype) -> Tensor:
    groups = [dict(c.named_buffers()) for c in clients]
    names = [n for n in groups[0] if any(not torch.equal(g[n], groups[0][n]) for g in groups)]
    return torch.cat([b.reshape(-1) for n, b in module.named_buffers() if n in names and b.dtype == dtype])


def three_clients() -> list[nn.Module]:
    values: list[dict[str, Any]] = [
        {
            "mean": torch.tensor([[0.1, 1e8], [0.3, float(i)]]) * (i + 1),
            "table": torch.tensor([0.1, 0.7]),
            "count": torch.tensor(10 + i),
            "coarse": torch.tensor([1.0 + i], dtype=torch.bfloat16),
            "mask": torch.tensor([i == 1, True]),
        }
        for i in range(3)
    ]
    return [client(**buffers) for buffers in values]


def test_floating_point_buffers_are_the_mean_in_client_order_and_others_the_first_clients() -> None:
    for index in range(3):
        clients = three_clients()
        means = [dict(module.named_buffers())["mean"].clone() for module in clients]
        show(clients, index)
        shown = dict(clients[index].named_buffers())
        assert torch.equal(shown["mean"], ((means[0] + means[1]) + means[2]) / 3)
        assert torch.equal(shown["coarse"], torch.tensor([2.0], dtype=torch.bfloat16))
        assert shown["count"] == 10
        assert shown["mask"].tolist() == [False, True]


def test_what_all_clients_have_alike_is_neither_sent_nor_written() -> None:
    # The mean of seven equal numbers is another number for half of all numbers, 0.1 and 0.7 among them.
    for value in (0.1, 0.7, 1 / 3, 1e-40, float("nan")):
        clients = [client(table=torch.full((3,), value)) for _ in range(7)]
        replaced, sent = show(clients, 0)
        assert replaced == sent == []


def test_one_message_a_type() -> None:
    _, sent = show(three_clients(), 0)
    assert [(message.dtype, message.numel()) for message in sent] == [
        (torch.float32, 4),
        (torch.int64, 1),
        (torch.bfloat16, 1),
        (torch.bool, 2),
    ]


def test_a_client_gets_its_own_buffers_back() -> None:
    clients = three_clients()
    before = [buffer.clone() for buffer in clients[2].buffers()]
    replaced, _ = show(clients, 2)
    assert not all(torch.equal(buffer, own) for buffer, own in zip(clients[2].buffers(), before, strict=True))
    put_back(replaced)
    assert all(torch.equal(buffer, own) for buffer, own in zip(clients[2].buffers(), before, strict=True))
    assert replaced == []


def test_a_model_without_buffers_sends_nothing() -> None:
    assert show([nn.Linear(2, 2), nn.Linear(2, 2)], 0) == ([], [])


def test_kinds_tell_types_and_shapes() -> None:
    module = client(a=torch.zeros(2, 3), b=torch.tensor(1))
    assert kinds(module) == {"buffer a": "torch.float32 (2, 3)", "buffer b": "torch.int64 ()"}


def test_a_client_whose_buffer_is_not_finite_is_left_out_of_its_mean(caplog: pytest.LogCaptureFixture) -> None:
    for index in range(3):
        clients = three_clients()
        mean, coarse = clients[1].get_buffer("mean"), [c.get_buffer("coarse").clone() for c in clients]
        mean[0, 0] = math.nan
        show(clients, index)
        first, third = (three_clients()[i].get_buffer("mean") for i in (0, 2))
        assert torch.equal(clients[index].get_buffer("mean"), (first + third) / 2)
        assert torch.equal(clients[index].get_buffer("coarse"), (coarse[0] + coarse[1] + coarse[2]) / 3)
        assert "the buffer mean of client 1 contains NaN" in caplog.text


def test_where_no_clients_buffer_is_finite_it_is_the_first_clients() -> None:
    clients = three_clients()
    for module in clients:
        module.get_buffer("mean")[1, 0] = math.inf
    show(clients, 2)
    assert torch.equal(clients[2].get_buffer("mean"), clients[0].get_buffer("mean"))
