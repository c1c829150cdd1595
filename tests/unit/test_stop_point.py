"""All ranks stop at the end of the same batch, at whatever speed they run and whichever of them asks."""

from __future__ import annotations

import itertools
import random
import threading
import time

import pytest

from lightning_parablock.membership.stop_point import StopPoint


class Ranks:
    """Stop points that hear of each other after a random delay."""

    def __init__(self, n_ranks: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.points = [
            StopPoint((r for r in range(n_ranks) if r != rank), self._sender(rank)) for rank in range(n_ranks)
        ]
        self.threads: list[threading.Thread] = []

    def _sender(self, rank: int):  # type: ignore[no-untyped-def]
        def tell(pledge: int) -> None:
            for other, point in enumerate(self.points):
                if other != rank:
                    self.start(lambda point=point: (time.sleep(self.random.random() / 100), point.hear(rank, pledge)))

        return tell

    def start(self, work) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=work)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize(("n_ranks", "askers", "seed"), [*itertools.product((1, 2, 3), ([0], [0, -1]), range(2))])
def test_one_batch_for_all(n_ranks: int, askers: list[int], seed: int) -> None:
    ranks, stops = Ranks(n_ranks, seed), [list[int]() for _ in range(n_ranks)]

    def train(rank: int) -> None:
        for batch in range(1, 60):
            time.sleep(ranks.random.random() / 500)
            if batch in (5, 35) and rank in [asker % n_ranks for asker in askers]:
                ranks.points[rank].request()
            if ranks.points[rank].pass_batch(lambda: None):
                stops[rank].append(batch)
                barrier.wait(10)  # what they do there is collective

    barrier = threading.Barrier(n_ranks)
    for rank in range(n_ranks):
        ranks.start(lambda rank=rank: train(rank))
    ranks.join()
    assert len(stops[0]) == 2 and stops[0][0] >= 5 and stops[0][1] >= 35
    assert all(stop == stops[0] for stop in stops)


def test_nobody_waits_where_nobody_asks() -> None:
    point = StopPoint([1], lambda pledge: pytest.fail("nothing to tell"))
    assert not any(point.pass_batch(lambda: pytest.fail("nothing to wait for")) for _ in range(10))


def test_a_lost_peer_ends_the_wait() -> None:
    def lost() -> None:
        raise ConnectionError

    point = StopPoint([1], lambda pledge: None)
    point.request()
    with pytest.raises(ConnectionError):
        point.pass_batch(lost)


def test_a_rank_in_a_collective_pledges_the_batch_behind_it() -> None:
    """Rank 1 waits in validation, after batch 3 of this rank: this one must get there, too."""
    told: list[int] = []
    point = StopPoint([1], told.append)
    for _ in range(2):
        point.pass_batch(lambda: None)
    point.hear(1, 4)  # it has passed three
    assert told == [3]
    assert [point.pass_batch(lambda: None) for _ in range(2)] == [False, True]
