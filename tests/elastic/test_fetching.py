"""What a guest takes ahead, and from whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.fetching import Fetcher, Look
from lightning_parablock.elastic.seat import Seat, SiteOptions
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog, Record

BLOCKS = 4


class Ahead:
    """The part of a transport that a guest needs."""

    def __init__(self) -> None:
        self.taken: list[Key] = []

        self.values: dict[Key, float] = {}

    def take_ahead(self, key: Key, value: Tensor, landed: Record) -> None:
        """See :class:`ElasticTransport`."""
        self.taken.append(key)
        self.values[key] = float(value)


class SlowLink(Fetcher):
    """Every block takes a round on its way, in which the next block of the donor changes."""

    def __init__(self, seat: Seat, ahead: Ahead) -> None:
        super().__init__(seat, cast(ElasticTransport, ahead), cast(Any, None))
        self.donors: list[str] = []
        self.keys: dict[int, Key] = {block: (block, block) for block in range(BLOCKS)}
        self.round = BLOCKS - 1
        self.record = Record(0, (0, 1, 2), (), (0, 1, 2), 0)

    def _newest(self, donor: str) -> tuple[Key, list[Key], Record]:
        return max(self.keys.values()), list(self.keys.values()), self.record

    def _pull(self, address: str, name: str, said: Mapping[str, object], look: Look) -> Tensor:
        self.donors.append(address)
        assert said["key"] in self.keys.values(), "it asks for what is not the newest any more"
        self.round += 1
        self.keys[self.round % BLOCKS] = (self.round, self.round % BLOCKS)
        return torch.zeros(1)


def guest(client: int, members: int = 3) -> Seat:
    """The seat of a guest of a run that has members 0, 1, ..."""
    options = SiteOptions("guest", "hub:1", 2, 100.0, 1, 2.0, "sharded", has_server_state=False)
    seat = Seat(options, "guest:1", "guest:2", asked_client=client)
    seat.candidates = tuple(Candidate(f"s{n}", "0", f"s{n}:1", client=n, opened=5) for n in range(members))
    return seat


def test_a_guest_on_a_slow_link_is_admitted_once_it_holds_every_block() -> None:
    seat, ahead = guest(3), Ahead()
    SlowLink(seat, ahead).follow(lambda: seat.is_ready or len(ahead.taken) > 3 * BLOCKS)
    assert seat.is_ready
    assert {block for _, block in ahead.taken} == set(range(BLOCKS))
    assert len(ahead.taken) <= 2 * BLOCKS


def test_guests_take_from_different_members() -> None:
    found: list[set[str]] = []
    for client in (3, 4, 5):
        seat, ahead = guest(client), Ahead()
        link = SlowLink(seat, ahead)
        link.follow(lambda seat=seat: seat.is_ready)
        found.append(set(link.donors))
    assert found == [{"s0:1"}, {"s1:1"}, {"s2:1"}]


class Redoing(SlowLink):
    """Blocks do not change any more, but their donor has another value of each than the next one."""

    def _pull(self, address: str, name: str, said: Mapping[str, object], look: Look) -> Tensor:
        return torch.full((1,), float(self.record.generation))


def test_a_guest_pulls_again_what_the_others_have_redone() -> None:
    seat, ahead = guest(3), Ahead()
    link = Redoing(seat, ahead)

    def is_enough() -> bool:
        if len(ahead.taken) == BLOCKS:  # the donor is lost, and it alone had landed rounds 2 and 3
            link.record = Record(1, (0, 1), (), (0, 1), 4, kept=(1, 1))
        return len(ahead.taken) >= BLOCKS + 2

    link.follow(is_enough)
    assert ahead.values == {(0, 0): 0.0, (1, 1): 0.0, (2, 2): 1.0, (3, 3): 1.0}


def test_what_a_later_generation_has_redone_does_not_count() -> None:
    first, second = Record(0, (0, 1), (), (0, 1), 0), Record(3, (1,), (), (1,), 4, kept=(2, 0))
    log = MembershipLog((first, second))
    assert log.has_kept((2, 0), first) and not log.has_kept((2, 1), first) and log.has_kept((2, 1), second)
    assert log.has_kept((-1, 5), first), "the value before the first exchange is the same at all sites"
    assert not log.has_kept((1, 0), Record(2, (0, 1), (), (0, 1), 3)), "a generation that never existed"
