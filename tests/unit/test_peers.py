"""What a rank knows of the others: who is late and for what, who is in another collective, and who was stopped."""

from __future__ import annotations

import logging
import re

import pytest

from lightning_parablock.errors import PeerError, PeerLostError, PeerTimeoutError, ProtocolError
from lightning_parablock.membership import awake
from lightning_parablock.membership import peers as peers_module
from lightning_parablock.membership.membership import Membership
from lightning_parablock.membership.peers import Peers
from lightning_parablock.membership.signs import SIGN_BYTES, Call, Progress, Sign, Word, digest_of
from lightning_parablock.system import limited_wait
from lightning_parablock.system.limited_wait import LATE, LimitedWait

MEMBERS = Membership(0, ("here", "there", "yonder"), ((0,), (1,), (2,)), 0, ("hub", "a", "b"))
LIMIT_S = 20.0


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def run(self, peers: Peers, for_s: float) -> None:
        """Pass time in which the process runs."""
        for _ in range(round(for_s / 0.1)):
            self.now_s += 0.1
            peers.tick()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(awake, "now_s", clock)
    monkeypatch.setattr(peers_module, "now_s", clock)
    return clock


@pytest.fixture
def peers(clock: Clock) -> Peers:
    return Peers(MEMBERS, heartbeat_s=1.0, silence_limit_s=LIMIT_S)


def call(number: int, text: str) -> Call:
    return Call(number, digest_of(text), text)


def arrive(peers: Peers, rank: int, of: Call, progress: Progress | None = None) -> None:
    peers.hear(rank, Word(Sign.ARRIVED, progress or Progress(), of))


def test_every_message_has_one_size_and_comes_back_as_it_was() -> None:
    word = Word(Sign.ARRIVED, Progress(3, 2, 1, 4567, 89), call(12, "reduce (mean) of torch.float32 (3,)"))
    assert word.pack().numel() == SIGN_BYTES
    assert Word.unpack(word.pack()) == word
    long = Word(Sign.ALIVE, Progress(), call(0, "ä" * 1000))
    assert long.pack().numel() == SIGN_BYTES
    assert set(Word.unpack(long.pack()).call.text) == {"ä"}


def test_those_who_have_not_submitted_a_round_are_named_with_what_they_do(peers: Peers, clock: Clock) -> None:
    peers.hear(1, Word(Sign.ALIVE, Progress(submitted=4)))
    peers.hear(2, Word(Sign.ALIVE, Progress(submitted=3, round=4, idle_ms=42_000)))
    clock.run(peers, 5)
    assert peers.behind(4) == (
        "site b (client 2, rank 2 on yonder) has not submitted round 4 (it trains in round 4, its last step ended 42 s "
        "ago; last heard 5 s ago)"
    )
    assert peers.behind(3) == ""


def test_collectives_that_differ_are_refused_with_who_is_where(peers: Peers) -> None:
    own, other = call(7, "reduce (mean) of torch.float32 ()"), call(7, "barrier run-stage")
    peers.check_agree(own, Progress())
    assert peers.missing(own) == [1, 2]
    arrive(peers, 1, own)
    arrive(peers, 1, call(8, "barrier of later"))  # is ahead, which is no fault
    peers.check_agree(own, Progress())
    assert peers.missing(own) == [2]
    assert "site b (client 2, rank 2 on yonder) has not come to it (it has entered no collective" in peers.absent(own)
    arrive(peers, 2, other)
    with pytest.raises(
        ProtocolError,
        match=r"site hub .* in 'reduce \(mean\) of .* \(\)'; site a .* in 'reduce .*'; site b .* in 'barrier",
    ):
        peers.check_agree(own, Progress())


def test_one_that_ends_its_training_alone_is_named_on_both_sides(peers: Peers) -> None:
    ended, own = Progress(rounds=3), call(7, "gather in anything")
    arrive(peers, 1, own, Progress())
    peers.hear(1, Word(Sign.ALIVE, ended))  # after that collective, which is no fault
    peers.check_agree(own, Progress())
    with pytest.raises(PeerError, match=r"site a .* ended its training after 3 rounds, by itself"):
        peers.check_agree(call(8, "gather in anything"), Progress())
    with pytest.raises(PeerError, match=r"site hub .* ended its training after 5 rounds, by itself"):
        peers.check_agree(own, Progress(rounds=5))
    with pytest.raises(PeerError, match=r"site a .* ended its training after 3 rounds"):
        peers.check_takes_part(3)
    peers.check_takes_part(2)


def test_a_silent_peer_is_given_up_after_the_limit(peers: Peers, clock: Clock) -> None:
    peers.hear(1, Word(Sign.ALIVE, Progress()))
    clock.run(peers, LIMIT_S - 1)
    peers.hear(2, Word(Sign.ALIVE, Progress()))
    assert peers.known() is None
    clock.run(peers, 2)
    error = peers.known()
    assert isinstance(error, PeerTimeoutError)
    assert "site a (client 1, rank 1 on there) has given no sign of life for 21 s" in str(error)
    assert peers.has_lost(1)
    assert not peers.has_lost(2)


def test_a_process_that_was_stopped_blames_itself_and_gives_the_others_time(peers: Peers, clock: Clock) -> None:
    clock.run(peers, LIMIT_S - 1)
    clock.now_s += 300  # SIGSTOP, or the machine sleeps
    assert peers.known() is None
    clock.run(peers, LIMIT_S - 1)
    assert peers.known() is None
    peers.lose(1, "ended on an error of its own: PeerTimeoutError: site hub has given no sign of life")
    error = peers.known()
    assert isinstance(error, PeerTimeoutError)
    assert re.match(
        r"this process, site hub \(client 0, rank 0 on here\), did not run for 300 s .*; meanwhile site a .* ended on",
        str(error),
    )


def test_a_short_pause_excuses_nobody(peers: Peers, clock: Clock) -> None:
    clock.now_s += LIMIT_S / 4
    clock.run(peers, 1)
    peers.lose(2, "was lost")
    error = peers.known()
    assert isinstance(error, PeerLostError)
    assert str(error) == "site b (client 2, rank 2 on yonder) was lost"


def test_a_long_wait_says_for_whom(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = Clock()
    monkeypatch.setattr(limited_wait.time, "monotonic", now)
    waiting = LimitedWait(200.0, reports=LATE)
    with caplog.at_level(logging.WARNING):
        while not waiting.is_over:
            now.now_s += 1
            waiting.report(lambda: "client 1 is late")
    assert [record.getMessage() for record in caplog.records] == [
        f"parablock: has waited {waited} s of at most 200 s: client 1 is late" for waited in (31, 91, 151)
    ]
