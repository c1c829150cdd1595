"""One of two members that wait for a message of the other one: prints "waits", and how the wait has ended.

Usage: worker_silent.py RANK SILENCE_S N_BYTES. The members meet at rank 0's host. Where N_BYTES is 0, none is sent.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore

from benchmarks.hosts.network import address
from lightning_parablock.meeting.devices import open_apart, open_listeners

PORT, LIMIT_S = 29500, 600.0


def main() -> None:
    """Connect, and wait for the other one."""
    rank, silence_s, n_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    open_listeners(address(rank), None)
    store = TCPStore(address(0), PORT, is_master=rank == 0, wait_for_workers=False, timeout=timedelta(seconds=60))
    group: Any = open_apart(store, rank, 2, 60.0, silence_s=silence_s)
    messages = [torch.ones(n_bytes or 1, dtype=torch.uint8), torch.zeros(n_bytes or 1, dtype=torch.uint8)]
    leaving = group.send(messages[:1], 1 - rank, 1) if n_bytes else None
    awaited = group.recv(messages[1:], 1 - rank, 1)
    print("waits", flush=True)
    try:
        awaited.wait(timedelta(seconds=LIMIT_S))
        if leaving is not None:
            leaving.wait(timedelta(seconds=LIMIT_S))
        print(f"arrived: {int(messages[1].sum())}", flush=True)
        time.sleep(LIMIT_S)  # the other one may still receive; the test ends both
    except RuntimeError as error:
        print(f"ended: {error}", flush=True)


if __name__ == "__main__":
    main()
