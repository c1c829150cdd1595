"""Generations one after the other over gloo, in one process, also after a member was killed in mid-transfer."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from lightning_parablock.meeting import devices
from lightning_parablock.regroup.decide import Rules, decide
from tests.elastic.member import Member, delta_of, founding


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

    for generation in (1, 4):  # the second time nobody was lost
        reports = [member.report() for member in members]
        decision = decide(generation, reports, Rules(topology=topology))
        assert decision.record.members == (0, 1)
        at_once([lambda m=m, d=decision: m.enter(d) for m in members])
    second = [member.submit(1) for member in members]

    W = torch.zeros_like(delta_of(0, 0))
    for round_index, exchanges in enumerate((first, second)):
        W = W + (delta_of(0, round_index) + delta_of(1, round_index)) / 2
        for exchange in exchanges:
            assert torch.equal(exchange.wait(lambda: torch.empty(0)), W)
    alone = members[0]
    alone.enter(decide(5, [alone.report()], Rules(topology=topology)))
    third = alone.submit(2)
    assert torch.equal(third.wait(lambda: torch.empty(0)), W + delta_of(0, 2))
    for thread in old:
        thread.join(60)
    assert not any(thread.is_alive() for thread in old), "threads of the generation that was abandoned come back"
    for member in members:
        member.transport.close()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
