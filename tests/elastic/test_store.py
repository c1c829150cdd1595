"""Versions of W: what lands, what is kept for whom, and what is dropped."""

from __future__ import annotations

import pytest
import torch

from lightning_parablock.elastic.store import CommittedStore, first_key
from lightning_parablock.errors import CallOrderError
from lightning_parablock.regroup.keys import BEFORE_ALL


def value(number: float) -> torch.Tensor:
    return torch.full((3,), number)


def store_of(*keys: tuple[int, int]) -> CommittedStore:
    """Two blocks; W after round t has the value t."""
    store = CommittedStore([value(-1), value(-1)])
    for key in keys:
        store.land(key, value(key[0]))
    return store


def test_exchanges_land_in_order_alone() -> None:
    store = store_of((0, 0), (0, 1), (2, 0))
    assert store.landed == (2, 0)
    for key in ((2, 0), (1, 1)):
        with pytest.raises(CallOrderError, match="cannot land"):
            store.land(key, value(0))
    assert [store.keys(block) for block in range(2)] == [[first_key(0), (0, 0), (2, 0)], [first_key(1), (0, 1)]]


def test_versions_are_found_by_exchange_and_by_round() -> None:
    store = store_of((0, 0), (1, 1), (2, 0), (3, 0))
    assert store.newest_key(0) == (3, 0) and torch.equal(store.newest(0), value(3))
    assert torch.equal(store.at((2, 0)), value(2))
    assert [store.value_before(0, t)[0] for t in (-5, -1, 0, 1, 2, 9)] == [
        first_key(0), first_key(0), (0, 0), (0, 0), (2, 0), (3, 0)
    ]  # fmt: skip
    assert [key for key, _ in store.after(0, (0, 0))] == [(2, 0), (3, 0)]
    with pytest.raises(CallOrderError, match="round 7, block 1 is not here"):
        store.at((7, 1))


@pytest.mark.parametrize(
    ("all_landed", "merged_round", "kept"),
    [
        ((3, 0), 3, [(3, 0)]),
        ((3, 0), 2, [(2, 0), (3, 0)]),  # a joiner may begin with W as of round 2
        ((0, 0), 3, [(2, 0), (3, 0)]),  # a member lacks round 2
        ((0, 0), 0, [(0, 0), (2, 0), (3, 0)]),
        (BEFORE_ALL, -1, [first_key(0), (0, 0), (2, 0), (3, 0)]),
    ],
)
def test_what_somebody_may_need_is_kept(
    all_landed: tuple[int, int], merged_round: int, kept: list[tuple[int, int]]
) -> None:
    store = store_of((0, 0), (1, 1), (2, 0), (3, 0))
    store.prune(all_landed, merged_round)
    assert store.keys(0) == kept


def test_with_increments_what_is_stored_is_what_parameters_can_hold() -> None:
    store = CommittedStore([value(0)], lambda block, values: values.bfloat16().float())
    store.land((0, 0), value(1.001))
    assert torch.equal(store.newest(0), value(1.0))


def test_a_joiner_begins_with_given_versions() -> None:
    store = store_of((0, 0))
    store.begin_with([((5, 1), value(5)), ((4, 0), value(4)), (first_key(1), value(-2))], (5, 1))
    assert store.landed == (5, 1)
    assert store.keys(0) == [(4, 0)] and store.keys(1) == [first_key(1), (5, 1)]
    with pytest.raises(CallOrderError, match=r"blocks \[1\]"):
        store.begin_with([((4, 0), value(4))], (4, 0))
