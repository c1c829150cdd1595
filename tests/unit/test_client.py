"""What one client knows: the held value's rule, and what a merge takes off it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_parablock.federation.client import Client, InFlight
from lightning_parablock.settings import InFlightValue

BIG = 2.0**24


def one(value: float) -> Tensor:
    return torch.tensor([value])


def client_with(*deltas: tuple[int, int, float]) -> Client:
    """Deltas in flight as (round, block, value)."""
    return Client(4, [0, 0], [InFlight(t, block, one(value)) for t, block, value in deltas])


def test_nothing_in_flight_holds_the_committed_value_itself() -> None:
    committed = one(2.0)
    assert client_with().held(0, committed, "local") is committed


def test_own_deltas_on_the_block_are_added_and_no_others() -> None:
    client = client_with((0, 0, 10.0), (1, 1, 100.0), (2, 0, 1000.0))
    assert client.held(0, one(1.0), "local").item() == 1011
    assert client.held(1, one(1.0), "local").item() == 101


def test_they_are_added_one_by_one_oldest_first() -> None:
    """(W + d1) + d2 is 1.25; W + (d1 + d2) and (W + d2) + d1 are 1."""
    client = client_with((0, 0, 1 - BIG), (1, 0, 0.25))
    assert client.held(0, one(BIG), "local").item() == 1.25


def test_the_anchor_ignores_them() -> None:
    committed = one(1.0)
    assert client_with((0, 0, 10.0)).held(0, committed, "anchor") is committed


def test_holding_changes_neither_the_committed_value_nor_the_deltas() -> None:
    client, committed = client_with((0, 0, 10.0)), one(1.0)
    client.held(0, committed, "local")
    assert (committed.item(), client.in_flight[0].delta.item()) == (1, 10)


def test_a_merge_takes_exactly_its_own_delta_and_counts_the_version() -> None:
    client = client_with((0, 0, 1.0), (1, 1, 2.0), (2, 0, 3.0))
    client.merge(0, [1, 0])
    assert [(d.round, d.block) for d in client.in_flight] == [(1, 1), (2, 0)]
    assert client.versions == [1, 0]
    client.merge(1, [1, 1])
    assert [(d.round, d.block) for d in client.in_flight] == [(2, 0)]
    assert client.versions == [1, 1]


@pytest.mark.parametrize(("value", "own"), [("local", ((4, 0), (4, 2))), ("anchor", ())])
def test_the_tag_names_version_and_deltas(value: InFlightValue, own: tuple[tuple[int, int], ...]) -> None:
    client = client_with((0, 0, 1.0), (1, 1, 2.0), (2, 0, 3.0))
    client.versions = [7, 8]
    assert client.tag(0, value) == (7, own)
