"""Means, worst client and spread: by hand, against the statistics module, and however the clients are spread."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.callbacks.sight_figures import (
    ClientFigures,
    Sums,
    client_metrics,
    figures_of,
    label_metrics,
)
from tests.unit.test_cli_report import record

THREE = [
    ClientFigures(0, loss=1.0, rounds=4, passed_rounds=4, samples=40, drift=0.5),
    ClientFigures(1, loss=4.0, rounds=1, passed_rounds=4, samples=10, drift=1.5),
    ClientFigures(2, loss=None, rounds=4, passed_rounds=4, samples=20, drift=None),
]


def test_by_hand() -> None:
    assert Sums.of(THREE).metrics() == {
        "parablock/val_loss_mean": 2.5,
        "parablock/val_loss_worst": 4.0,
        "parablock/val_loss_spread": 3.0,
        "parablock/val_loss_std": 1.5,
        "parablock/participation_mean": 0.75,
        "parablock/participation_min": 0.25,
        "parablock/samples_total": 70.0,
        "parablock/drift_mean": 1.0,
        "parablock/drift_max": 1.5,
    }
    assert client_metrics(THREE[1:], 4) == {
        "parablock/val_loss_client_1": 4.0,
        "parablock/drift_client_1": 1.5,
        "parablock/participation_client_1": 0.25,
        "parablock/samples_client_1": 10.0,
        "parablock/participation_client_2": 1.0,
        "parablock/samples_client_2": 20.0,
    }
    assert label_metrics({"b": (6.0, 4.0), "a": (1.0, 2.0), "none": (0.0, 0.0)}) == {
        "parablock/val_loss_label_a": 0.5,
        "parablock/val_loss_label_b": 1.5,
    }


def test_before_the_first_round_there_are_only_losses() -> None:
    known = [ClientFigures(0, loss=2.0), ClientFigures(1)]
    assert set(Sums.of(known).metrics()) == {
        f"parablock/val_loss_{which}" for which in ("mean", "worst", "spread", "std")
    }
    assert client_metrics(known, 0) == {"parablock/val_loss_client_0": 2.0}
    assert Sums.of([ClientFigures(0)]).metrics() == {}


LOSSES = st.lists(st.floats(0.01, 20), min_size=1, max_size=9)


@settings(deadline=None, derandomize=True)
@given(losses=LOSSES, cut=st.integers(0, 8))
def test_sums_of_ranks_are_sums_of_clients(losses: list[float], cut: int) -> None:
    clients = [ClientFigures(i, loss=loss, rounds=1, passed_rounds=2) for i, loss in enumerate(losses)]
    parts = [Sums.of(part) for part in (clients[:cut], clients[cut:]) if part]
    added = tuple(map(sum, zip(*(part.added for part in parts), strict=True)))
    peaks = tuple(map(max, zip(*(part.peaks for part in parts), strict=True)))
    found = Sums(added, peaks).metrics()
    assert found["parablock/val_loss_mean"] == pytest.approx(statistics.fmean(losses))
    assert found["parablock/val_loss_std"] == pytest.approx(statistics.pstdev(losses), abs=1e-5)
    assert found["parablock/val_loss_worst"] == max(losses)
    assert found["parablock/val_loss_spread"] == max(losses) - min(losses)


def test_from_records_to_figures() -> None:
    records = [
        replace(record(2, 0), samples=8, drift=0.25),
        replace(record(3, 0), samples=8, drift=0.75),
        replace(record(4, 0), samples=0, drift=None),
        replace(record(3, 5), samples=2, drift=0.5),  # a cohort's client that sat out the other rounds
    ]
    first, other = figures_of(records, {0: 1.5})
    assert first == ClientFigures(0, loss=1.5, rounds=2, passed_rounds=3, samples=16, drift=0.5)
    assert other == ClientFigures(5, loss=None, rounds=1, passed_rounds=3, samples=2, drift=0.5)
    assert [one.drift for one in figures_of(records, {0: None}, told_rounds=3)] == [0.75, 0.5]
    assert [one.drift for one in figures_of(records, {0: None}, told_rounds=4)] == [None, None]
    assert figures_of([], {3: None}) == [ClientFigures(3)]


def test_a_client_that_diverged_is_seen() -> None:
    for loss in (math.inf, math.nan):
        for order in (1, -1):
            found = Sums.of([ClientFigures(0, loss=1.0), ClientFigures(1, loss=loss)][::order]).metrics()
            assert found["parablock/val_loss_worst"] == found["parablock/val_loss_std"] == math.inf
