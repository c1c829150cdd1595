from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightning_parablock.data.partition import (
    Shares,
    check_named_labels,
    hold_out,
    partition_by_file,
    partition_by_label,
    partition_by_named_labels,
    partition_dirichlet,
    partition_iid,
)
from lightning_parablock.errors import DataError

LABELS = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=120)
CLIENTS = st.integers(1, 6)
SEEDS = st.integers(0, 2**32)
FIXED = settings(deadline=None, derandomize=True)


def assert_disjoint_and_complete(shares: Shares, n_rows: int) -> None:
    assert sorted(row for share in shares for row in share) == list(range(n_rows))
    assert all(share == sorted(share) for share in shares)


@FIXED
@given(n_rows=st.integers(1, 300), n_clients=CLIENTS, seed=SEEDS)
def test_iid_is_disjoint_complete_even_and_fixed(n_rows: int, n_clients: int, seed: int) -> None:
    assume(n_clients <= n_rows)
    shares = partition_iid(n_rows, n_clients, seed)
    assert_disjoint_and_complete(shares, n_rows)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert shares == partition_iid(n_rows, n_clients, seed)


def test_iid_follows_the_seed() -> None:
    assert partition_iid(100, 2, 0) != partition_iid(100, 2, 1)


@FIXED
@given(labels=LABELS, n_clients=CLIENTS)
def test_labels_are_dealt_whole(labels: list[str], n_clients: int) -> None:
    assume(len(set(labels)) >= n_clients)
    shares = partition_by_label(labels, n_clients)
    assert_disjoint_and_complete(shares, len(labels))
    held = [{labels[row] for row in share} for share in shares]
    assert sum(len(labels_held) for labels_held in held) == len(set(labels))
    assert all(held)


def test_labels_are_balanced_by_rows() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 20 + ["d"] * 10
    assert [len(share) for share in partition_by_label(labels, 2)] == [60, 60]


@FIXED
@given(labels=LABELS, n_clients=CLIENTS, seed=SEEDS, alpha=st.floats(0.05, 100))
def test_dirichlet_is_disjoint_complete_and_fixed_or_says_why_not(
    labels: list[str], n_clients: int, seed: int, alpha: float
) -> None:
    assume(n_clients <= len(labels))
    try:
        shares = partition_dirichlet(labels, n_clients, alpha, seed)
    except DataError as error:
        assert "drew no row" in str(error) and "raise alpha" in str(error)
        return
    assert_disjoint_and_complete(shares, len(labels))
    assert all(shares)
    assert shares == partition_dirichlet(labels, n_clients, alpha, seed)


def test_dirichlet_goes_from_skewed_to_even_with_alpha() -> None:
    labels = ["a", "b"] * 500

    def largest_part(alpha: float) -> int:
        shares = partition_dirichlet(labels, 2, alpha, seed=4)
        return max(count for share in shares for count in Counter(labels[row] for row in share).values())

    assert largest_part(1e4) in range(240, 261)
    assert largest_part(0.1) > 400


def test_named_labels_go_where_they_are_named_and_others_nowhere() -> None:
    labels = ["a", "b", "c", "a", "d"]
    assert partition_by_named_labels(labels, [["a"], ["d", "b"]]) == [[0, 3], [1, 4]]


def test_named_labels_must_exist_and_be_named_once() -> None:
    with pytest.raises(DataError, match=r"client 1: no row is labelled 'asyncoi'; .*did you mean 'asyncio'"):
        check_named_labels(["asyncio", "http"], [["http"], ["asyncoi"]])
    with pytest.raises(DataError, match="'http' is named for clients 0 and 1"):
        check_named_labels(["asyncio", "http"], [["http"], ["http"]])


def test_one_file_a_client() -> None:
    assert partition_by_file(["x", "y", "x"], ["x", "y"], 2) == [[0, 2], [1]]
    with pytest.raises(DataError, match=r"2 files for 3 clients \(x, y\)"):
        partition_by_file(["x", "y"], ["x", "y"], 3)


def test_too_few_rows_or_labels_are_errors() -> None:
    with pytest.raises(DataError, match="more clients than samples: 3 clients, 2 training rows"):
        partition_iid(2, 3, 0)
    with pytest.raises(DataError, match="more clients than samples"):
        partition_dirichlet(["a", "a"], 3, 1.0, 0)
    with pytest.raises(DataError, match="1 labels for 2 clients"):
        partition_by_label(["a", "a"], 2)


@FIXED
@given(strata=st.lists(st.sampled_from("abc"), min_size=2, max_size=200), fraction=st.floats(0, 0.9), seed=SEEDS)
def test_held_out_rows_are_disjoint_from_training_and_spread_over_strata(
    strata: list[str], fraction: float, seed: int
) -> None:
    train, held = hold_out(strata, fraction, seed)
    assert sorted(train + held) == list(range(len(strata)))
    assert train
    wanted = min(max(1, round(fraction * len(strata))), len(strata) - 1) if fraction else 0
    assert len(held) == wanted
    counts, held_counts = Counter(strata), Counter(strata[row] for row in held)
    for stratum, count in counts.items():
        assert abs(held_counts[stratum] - count * wanted / len(strata)) < 1 + 1e-9
    assert (train, held) == hold_out(strata, fraction, seed)


def test_nothing_can_be_held_out_of_one_row() -> None:
    with pytest.raises(DataError, match="needs at least 2 rows"):
        hold_out(["a"], 0.1, 0)
    assert hold_out(["a"], 0, 0) == ([0], [])
