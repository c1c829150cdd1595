"""One member with the real transport of a generation and no engine; run as a program it is the one that gets killed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.feedback import Residuals
from lightning_parablock.elastic.generation import open_generation
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.meeting.devices import open_listeners
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.report import Decision, Report
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings

SIZE = 200_000
SITES = {0: "a", 1: "b", 2: "c"}


def delta_of(client: int, round_index: int) -> Tensor:
    """What a client has to say."""
    return torch.sin(torch.arange(SIZE, dtype=torch.float32) * (client + 1) + round_index)


def founding(n: int) -> Decision:
    """The first generation."""
    ids = tuple(range(n))
    record = Record(0, ids, ids, ids, 0, sites={i: SITES[i] for i in ids}, samples=dict.fromkeys(ids, 1))
    return Decision(record, MembershipLog((record,)), {}, None)


class Member:
    """A member of generations that meet at a store.

    Args:
        client: Its client id.
        port: Of the store.
        options: Settings that differ from the usual.
    """

    def __init__(self, client: int, port: int, **options: Any) -> None:
        settings = Settings(
            local_steps=1,
            delay_steps=1,
            chunk_bytes=65536,
            straggler_timeout_s=120.0,
            compression="int8",
            server_optimizer="nesterov",
            **options,
        )
        blocks = [Block("w", ("w",), SIZE)]
        schedule = Schedule("sequential", 1, 0, Cohorts(0))
        self.settings, self.blocks, self.port = settings, blocks, port
        self.trouble = threading.Event()
        self.residuals = Residuals()
        self.transport = ElasticTransport(
            blocks, settings, schedule, CommittedStore([torch.zeros(SIZE)]), client=client, rejoin_timeout_s=60.0
        )
        self.transport.on_trouble = lambda error: self.trouble.set()

    def report(self) -> Report:
        """Seal, and say where it stands."""
        standing, started = self.transport.seal()
        return Report(SITES[self.transport.client], None, standing, None, started)

    def enter(self, decision: Decision, members: Sequence[Member] = ()) -> None:
        """Stage a generation, with what the other members hold, connect to them and open it."""
        transport, holders = self.transport, {member.transport.client: member for member in members}
        assert transport.lacking(decision) == []
        needed = transport.needed_state(decision)
        state = [piece for s in needed if s.holder is not None for piece in holders[s.holder].transport.state_of(s)]
        server = transport.stage(decision, {}, state)
        store = TCPStore("127.0.0.1", self.port, is_master=False, timeout=timedelta(seconds=60))
        carrier = open_generation(
            decision.record,
            transport.client,
            store,
            server,
            self.settings,
            self.blocks,
            device=torch.device("cpu"),
            limit_s=60.0,
        )
        transport.open(carrier)

    def submit(self, round_index: int) -> Any:
        """Send its delta."""
        client = self.transport.client
        residual = self.residuals.begin(round_index, client, 0, SIZE)
        upload = Upload(delta_of(client, round_index), residual=residual)
        return self.transport.submit(round_index, 0, {client: upload}, self.transport.log.members_at(round_index))


if __name__ == "__main__":
    torch.set_num_threads(1)
    open_listeners("127.0.0.1", None)
    # So slow that it is killed in mid transfer also where the test's own process has to wait for a processor.
    member = Member(2, int(sys.argv[1]), topology=sys.argv[2], upload_bps=2e4)
    member.enter(founding(3))
    member.submit(0)
    print("sends", flush=True)
    sys.stdin.read()
    os._exit(1)
