"""One rank: joins a run, opens the default group and two more as a run does, and shows where it listens."""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting.devices import _listening, on_listeners, open_group
from lightning_parablock.meeting.introductions import Introduction
from lightning_parablock.meeting.meeting import MeetingTable
from lightning_parablock.meeting.rendezvous import Address, connect_store, host_store
from lightning_parablock.meeting.ways import Ways
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.system.limited_wait import LimitedWait

PORTS = PortRange(40000, 40199)
LIMIT_S = 60.0


def main() -> None:
    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, wait = Address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), LimitedWait(LIMIT_S)
    store = host_store(address) if rank == 0 else connect_store(address, wait)
    own = Introduction(rank, n_ranks, "ab"[rank], socket.gethostname(), os.getpid())
    meeting = MeetingTable(store, own, str(address)).meet(wait)
    try:
        Ways(address.host, one_host=False, ports=PORTS).open(store, meeting, wait)
    except ConfigurationError as error:
        sys.exit(f"refused: {error}")
    with on_listeners():
        dist.init_process_group("gloo", store=store, rank=rank, world_size=n_ranks, timeout=timedelta(seconds=LIMIT_S))
    groups = [open_group("gloo", LIMIT_S) for _ in range(2)]
    value = torch.tensor([rank])
    for group in (None, *groups):
        dist.all_reduce(value, dist.ReduceOp.MAX, group)
    where = [(address, port) for address, port in _listening().values() if port != int(os.environ["MASTER_PORT"])]
    assert all(port in PORTS for _, port in where)
    print("listens at", where)
    print("maximum", value.item())
    dist.barrier()
    dist.destroy_process_group()  # or gloo's threads may run into the end of the process


if __name__ == "__main__":
    main()
