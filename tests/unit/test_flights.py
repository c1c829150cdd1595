"""The times of a round: what of a wait was an exchange, what was a slower client, and what was neither."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_parablock.federation.flights import Flight, TurnFacts
from lightning_parablock.transport.base import Exchange, ExchangeFacts
from tests.support.engine import check_times

START_S = 1_800_000_000.0


class Landed(Exchange):
    """Ready and over at these times, in seconds after START_S."""

    def __init__(self, ready_s: float, end_s: float) -> None:
        super().__init__(brings_increment=False)
        self._facts = ExchangeFacts(START_S, START_S + ready_s, START_S + end_s, 0, 0)

    def _received(self) -> Tensor:
        return torch.zeros(1)

    @property
    def facts(self) -> ExchangeFacts:
        return self._facts


def flight_of(exchanges: list[tuple[float, float]], waits: list[tuple[float, float]], clients: int = 1) -> Flight:
    turns = {client: TurnFacts(START_S - 9, client % len(exchanges), 4, START_S) for client in range(clients)}
    flight = Flight({}, {}, turns, {block: Landed(*times) for block, times in enumerate(exchanges)})
    flight.waits_s = [(START_S + from_s, START_S + until_s) for from_s, until_s in waits]
    return flight


def test_what_a_thread_takes_to_wake_up_is_no_part_of_the_exchange() -> None:
    flight = flight_of([(1.0, 2.0)], [(0.5, 2.75)])
    assert (flight.wait_peer_s, flight.exposed_s) == (0.5, 1.0)
    late = flight_of([(1.0, 2.0)], [(3.0, 3.25)])
    assert (late.wait_peer_s, late.exposed_s) == (0.0, 0.0)


def test_a_round_with_several_exchanges_is_over_with_the_last_one() -> None:
    """Its first client's record has the rank's times, for all of them: sums over clients count them once."""
    flight = flight_of([(1.0, 2.0), (1.5, 4.0)], [(0.0, 2.25), (2.25, 4.5)], clients=2)
    first, second = (flight.record_of(0, client, ["a", "b"]) for client in range(2))
    assert (first.exchange_s, first.exposed_s, first.wait_peer_s) == (2.5, 2.5, 1.5)
    assert (second.exchange_s, second.exposed_s, second.wait_peer_s) == (0.0, 0.0, 0.0)


MOMENT = st.integers(0, 1000).map(lambda n: n / 64)
SPAN = st.tuples(MOMENT, MOMENT).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(SPAN, min_size=1, max_size=3), st.lists(MOMENT, min_size=2, max_size=6))
def test_the_exposed_part_is_never_longer_than_the_exchange(
    exchanges: list[tuple[float, float]], moments: list[float]
) -> None:
    ordered = sorted(moments)
    waits = list(zip(ordered[::2], ordered[1::2], strict=False))
    flight = flight_of(exchanges, waits, clients=2)
    check_times([flight.record_of(0, client, ["a", "b", "c"]) for client in range(2)])
    assert flight.wait_peer_s + flight.exposed_s <= sum(until_s - from_s for from_s, until_s in waits)
