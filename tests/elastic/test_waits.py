"""How the engine waits for an elastic transport: within limits, seeing errors, and saying what for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.compression import NoCompression
from lightning_parablock.elastic.patience import Patience
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import CallOrderError, DroppedError, PeerTimeoutError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.report import Decision
from lightning_parablock.server.optimizers import ServerSGD
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Exchange, ExchangeFacts
from lightning_parablock.transport.loopback import LoopbackTransport

RECORD = Record(0, (0, 1), (0, 1), (0, 1), 0, sites={0: "a", 1: "b"})
FOUNDING = Decision(RECORD, MembershipLog((RECORD,)), {}, None)


class Never(Exchange):
    """Comes to no end."""

    def when_over(self, note: Callable[[], None]) -> None:
        del note

    def _received(self) -> torch.Tensor:
        raise AssertionError("no thread waits for it")

    @property
    def facts(self) -> ExchangeFacts:
        raise AssertionError("it is not over")


class Failed(Never):
    """Has failed on its way."""

    def when_over(self, note: Callable[[], None]) -> None:
        note()

    def _received(self) -> torch.Tensor:
        raise RuntimeError("a chunk is lost")


class Broken(LoopbackTransport):
    """A generation whose members connect, and whose transfers fail."""

    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        return Failed(brings_increment=False)


class Silent(LoopbackTransport):
    """A generation whose other members say nothing."""

    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        return Never(brings_increment=False)


def transport_of(
    straggler_s: float = 100.0, rejoin_s: float = 100.0, check: Callable[[], None] = lambda: None
) -> ElasticTransport:
    settings = Settings(local_steps=1, delay_steps=1, straggler_timeout_s=straggler_s)
    return ElasticTransport(
        [Block("head", ("w",), 4)],
        settings,
        Schedule("sequential", 1, 0, Cohorts(0)),
        CommittedStore([torch.zeros(4)]),
        client=0,
        rejoin_timeout_s=rejoin_s,
        check=check,
    )


def shard() -> ServerShard:
    return ServerShard(ServerSGD(), [torch.zeros(4)], compression=NoCompression())


def silent() -> Silent:
    return Silent(shard())


def submitted(transport: ElasticTransport) -> Exchange:
    transport.stage(FOUNDING, {})
    transport.open(silent())
    return transport.submit(0, 0, {0: Upload(torch.ones(4))}, (0, 1))


def test_an_exchange_that_nobody_finishes_is_an_error_that_names_round_block_and_the_other_sites() -> None:
    exchange = submitted(transport_of(straggler_s=0.2))
    said = (
        r"^round 0, block 'head': not finished by the other members of generation 0, site b \(client 1\) within 0.2 s; "
        "raise straggler_timeout_s"
    )
    with pytest.raises(PeerTimeoutError, match=said):
        exchange.wait(lambda: torch.zeros(4))


def test_a_limit_that_passes_while_a_generation_ends_is_not_said_to_be_that_of_the_next_phase() -> None:
    def check() -> None:  # the members are sealed between two looks
        time.sleep(0.4)
        transport.seal()

    transport = transport_of(straggler_s=0.3, rejoin_s=0.2, check=check)
    exchange = submitted(transport)
    with pytest.raises(PeerTimeoutError, match=r"too few sites .* within 0.2 s; start the lost sites again"):
        exchange.wait(lambda: torch.zeros(4))


def connected_again(log: MembershipLog) -> MembershipLog:
    return log.and_then(replace(log.newest, generation=log.generation + 1, joiners=()))


def test_an_exchange_that_fails_in_every_generation_is_an_error_in_the_end() -> None:
    transport, errors = transport_of(straggler_s=0.3), list[Exception]()
    transport.on_trouble = errors.append
    exchange = submitted(transport)

    def connect_again() -> None:
        for _ in range(300):
            if not waiting.is_alive():
                return
            transport.seal()
            log = connected_again(transport.log)
            transport.stage(Decision(log.newest, log, {0: (-1, -1), 1: (-1, -1)}, 0), {})
            transport.open(Broken(shard()))
            waiting.join(0.1)

    def wait() -> None:
        with pytest.raises(PeerTimeoutError, match=r"site b .*a chunk is lost\) within 0.3 s; it fails whenever"):
            exchange.wait(lambda: torch.zeros(4))
        done.set()

    done, waiting = threading.Event(), threading.Thread(target=wait)
    waiting.start()
    connect_again()
    assert done.is_set()
    assert len(errors) == transport.log.generation, "each generation has said once that it has failed"


def test_only_what_has_changed_at_an_opening_begins_the_limit_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, log, nothing = [0.0], FOUNDING.log, (-1, -1)
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    patience = Patience(100.0, 30.0)

    def left_s(log: MembershipLog, landed: Key, *, is_sealed: bool = False, after_s: float) -> float:
        limit = patience.now(log, is_sealed, landed)
        now_s[0] += after_s
        return limit.remaining_s

    assert left_s(log, nothing, after_s=40) == 60
    assert left_s(log, nothing, is_sealed=True, after_s=20) == 10
    again = connected_again(log)
    assert left_s(again, nothing, after_s=0) == 60, "the members have connected again: what they waited for counts"
    assert left_s(again, (0, 0), after_s=30) == 30, "a limit runs on while its generation is open"
    again = connected_again(again)
    assert left_s(again, (0, 0), after_s=50) == 50, "something has landed in the generation before"
    assert left_s(again, (0, 0), is_sealed=True, after_s=29) == 1
    back = again.and_then(replace(again.newest, generation=9, joiners=(1,)))
    assert left_s(back, (0, 0), after_s=10) == 90, "site b has come back"


def test_while_no_generation_is_open_the_limit_is_that_of_coming_back() -> None:
    transport = transport_of(rejoin_s=0.2)
    exchange = submitted(transport)
    transport.seal()
    with pytest.raises(PeerTimeoutError, match="round 0, block 'head': too few sites to continue after generation 0"):
        exchange.wait(lambda: torch.zeros(4))
    with pytest.raises(PeerTimeoutError, match=r"round 3: .*rejoin_timeout_s"):
        transport.await_round(3)
    with pytest.raises(PeerTimeoutError, match=r"round 0: too few sites to begin within 0.2 s"):
        transport_of(rejoin_s=0.2).await_round(0)
    assert transport.started == -1, "a round that may not begin has not begun"


def test_a_wait_sees_what_ends_the_sites_part() -> None:
    def check() -> None:
        raise DroppedError("the run has continued without this site")

    with pytest.raises(DroppedError):
        submitted(transport_of(check=check)).wait(lambda: torch.zeros(4))


def test_a_round_begins_at_the_opening_and_counts_from_then_on() -> None:
    transport = transport_of()
    waiting = threading.Thread(target=lambda: transport.await_round(0))
    waiting.start()
    assert transport.seal()[1] == -1
    transport.stage(FOUNDING, {})
    transport.open(silent())
    waiting.join(60)
    assert not waiting.is_alive()
    assert transport.seal()[1] == 0


def test_what_is_out_of_order_is_refused() -> None:
    transport = transport_of()
    with pytest.raises(CallOrderError, match="staged"):
        transport.open(silent())
    submitted(transport)
    transport.await_round(0)
    again = Record(1, (0, 1), (0,), (1, 0), 1, sites={0: "a", 1: "b"})
    with pytest.raises(DroppedError, match="continued without site a"):
        transport.stage(Decision(again, MembershipLog((RECORD, again)), {1: (-1, -1)}, 1), {})
    joiner = transport_of()
    with pytest.raises(CallOrderError, match="lacks"):
        joiner.stage(Decision(again, MembershipLog((RECORD, again)), {1: (-1, -1)}, 1), {})


def test_a_generation_that_is_open_holds_nothing_of_what_was_staged_for_it() -> None:
    transport = transport_of()
    transport.stage(FOUNDING, {})
    assert transport.staged is not None
    staged = weakref.ref(transport.staged)
    transport.open(silent())
    assert staged() is None, "a joiner's first W would live as long as the generation"
