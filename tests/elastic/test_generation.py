"""Generations one after the other over gloo, in one process, also after a member was killed in mid-transfer."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore

from lightning_parablock.elastic.generation import _WireApart
from lightning_parablock.elastic.shard import Backup
from lightning_parablock.errors import PeerLostError
from lightning_parablock.meeting import devices
from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.keys import BEFORE_ALL
from lightning_parablock.transport.base import Exchange
from lightning_parablock.transport.chunks import Kind
from lightning_parablock.transport.wires import Transfer
from tests.elastic.member import Member, delta_of, founding
from tests.oracle_codecs import arrives


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Generator[int]:
    """Of a store at which members meet."""
    monkeypatch.setattr(devices, "_listeners", ())
    devices.open_listeners("127.0.0.1", None)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    yield store.port
    del store


def at_once(actions: Iterable[Callable[[], object]]) -> None:
    """Run actions on threads of their own, and raise what any of them raises."""
    errors: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    if errors:
        raise errors[0]


def lanes() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("parablock-")}


class Plain:
    """The same exchanges as a plain loop: int8 both ways with error feedback, and Nesterov's momentum."""

    def __init__(self) -> None:
        zeros = torch.zeros_like(delta_of(0, 0))
        self.W, self.velocity, self.left_out = zeros, zeros, {client: zeros for client in (*range(2), "server")}

    def commit(self, round_index: int, contributors: Sequence[int]) -> None:
        """An exchange."""
        sent = [self._through(client, delta_of(client, round_index)) for client in contributors]
        mean = sum(sent[1:], sent[0]) / len(sent)
        self.velocity = 0.9 * self.velocity + mean
        wanted = 0.7 * (mean + 0.9 * self.velocity) + self.left_out["server"]
        before, self.W = self.W, self.W + arrives("int8", wanted)
        self.left_out["server"] = wanted - (self.W - before)

    def _through(self, client: int, delta: Tensor) -> Tensor:
        wanted = delta + self.left_out[client]
        sent = arrives("int8", wanted)
        self.left_out[client] = wanted - sent
        return sent

    def expect(self, exchanges: Iterable[Exchange]) -> None:
        """What the exchanges have brought."""
        for exchange in exchanges:
            assert torch.equal(exchange.wait(lambda: torch.empty(0)), self.W)


@pytest.mark.parametrize("topology", ["star", "sharded"])
def test_a_generation_follows_another_after_a_member_was_killed_in_mid_transfer(
    port: int, topology: str, caplog: pytest.LogCaptureFixture
) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-m", "tests.elastic.member", str(port), topology],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    members = [Member(client, port, topology=topology) for client in range(2)]
    at_once([lambda m=m: m.enter(founding(3)) for m in members])
    first = [member.submit(0) for member in members]
    old = lanes()
    assert killed.stdout is not None
    assert killed.stdout.readline() == "sends\n"
    killed.kill()
    killed.wait()
    assert members[0].trouble.wait(60), "the first one serves, so it is the first that misses something"

    for member, other in (members, members[::-1]):
        member.transport.send_backup = lambda client, backup, other=other: other.transport.take_backup(
            backup.block, backup.server, backup.label, backup.read() or []
        )
    rules = Rules(topology=topology, has_server_state=True)
    plain = Plain()

    def regroup(generation: int, stay: list[Member]) -> None:
        decision = decide(generation, [member.report() for member in stay], rules)
        assert decision.record.members == tuple(range(len(stay)))
        assert all(piece.as_of is not None for piece in decision.record.restored if piece.server == 1)
        at_once([lambda m=m: m.enter(decision, members) for m in stay])

    regroup(1, members)
    regroup(2, members)  # at once, and no member was lost
    plain.commit(0, (0, 1))
    plain.expect(first)
    regroup(4, members)
    second = [member.submit(1) for member in members]
    plain.commit(1, (0, 1))
    plain.expect(second)
    regroup(5, members[:1])  # whose peer's momentum is in its backup
    plain.commit(2, (0,))
    plain.expect([members[0].submit(2)])

    for thread in old:
        thread.join(60)
    assert not any(thread.is_alive() for thread in old), "threads of the generation that was abandoned come back"
    for member in members:
        member.transport.close()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.fixture
def no_collector() -> Generator[None]:
    """What is unreachable is freed at once, or not at all."""
    gc.disable()
    yield
    gc.enable()


def test_nothing_is_left_of_a_generation_that_has_ended(port: int, no_collector: None) -> None:
    members, backups = [Member(client, port) for client in range(2)], list[Backup]()
    for member in members:
        member.transport.send_backup = lambda client, backup: backups.append(backup)
    at_once([lambda m=m: m.enter(founding(2)) for m in members])
    old = lanes()
    held = [part for m in members for part in parts_of(m)]
    for exchange in [member.submit(0) for member in members]:
        exchange.wait(lambda: torch.empty(0))
    members[0].submit(1)
    members[1].transport.seal()  # the other one sees a transfer that fails
    assert members[0].trouble.wait(60)
    members[1].submit(1)
    decision = decide(1, [member.report() for member in members], Rules(has_server_state=True))
    at_once([lambda m=m: m.enter(decision, members) for m in members])
    for thread in old:
        thread.join(60)
    left = [reference() for reference in held if reference() is not None]
    for member in members:
        member.transport.close()
    assert not left


def test_a_failed_transfer_is_named_without_an_end_of_the_run(port: int) -> None:
    members, errors = [Member(client, port) for client in range(2)], list[Exception]()
    for member in members:
        member.transport.on_trouble = lambda error, member=member: (errors.append(error), member.trouble.set())
    at_once([lambda m=m: m.enter(founding(2)) for m in members])
    members[0].submit(0)
    members[1].transport.seal()
    assert members[0].trouble.wait(60)
    for member in members:
        member.transport.close()
    (error,) = errors
    assert str(error).startswith("round 0, block 'w': site b")
    assert "restart" not in str(error)


def test_a_backup_that_has_not_left_when_a_generation_ends_leaves_in_the_next_one(port: int) -> None:
    members, waiting = [Member(client, port, topology="star") for client in range(2)], list[Backup]()
    members[0].transport.send_backup = lambda client, backup: waiting.append(backup)

    def regroup(generation: int) -> None:
        decision = decide(generation, [member.report() for member in members], Rules(has_server_state=True))
        at_once([lambda m=m: m.enter(decision, members) for m in members])

    at_once([lambda m=m: m.enter(founding(2)) for m in members])
    for exchange in [member.submit(0) for member in members]:
        exchange.wait(lambda: torch.empty(0))
    regroup(1)
    assert [backup.label for backup in waiting] == [(BEFORE_ALL, 0), ((0, 0), 0), ((0, 0), 1)]
    assert [backup.read() is None for backup in waiting] == [True, True, False]
    regroup(2)
    assert len(waiting) == 3, "the other one has this version"
    assert waiting[-1].read() is None
    for member in members:
        member.transport.close()


def parts_of(member: Member) -> list[weakref.ref[Any]]:
    """What a member has of the generation that is open: its exchanges, its group and its server."""
    carrier: Any = member.transport._carrier  # pyright: ignore[reportPrivateUsage]
    return [weakref.ref(part) for part in (carrier, carrier._apart._group, carrier.server)]


def test_a_cut_ends_every_transfer_also_where_a_peer_is_gone_already(port: int) -> None:
    groups: dict[int, Any] = {}

    def connect(rank: int) -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
        groups[rank] = devices.open_apart(store, rank, 3, 60.0, silence_s=60.0)

    at_once([lambda rank=rank: connect(rank) for rank in range(3)])
    wires = [_WireApart(groups[rank], pins_memory=False) for rank in range(3)]
    wires[1].close()
    (awaited,), _ = wires[0].post([Transfer(torch.empty(8, dtype=torch.uint8), 2, Kind.DELTA)], [])
    wires[0].close()
    with pytest.raises(RuntimeError):
        awaited.wait(60.0)
    with pytest.raises(PeerLostError, match="has ended"):
        wires[0].post([], [Transfer(torch.empty(8, dtype=torch.uint8), 2, Kind.DELTA)])
