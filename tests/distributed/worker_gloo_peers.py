"""One of two ranks that open gloo groups and know where the other one listens: worker_gloo_peers.py [--elsewhere].

With ``--elsewhere`` rank 1 tells gloo's store another listener than the one that it has announced before. Rank 0, which
has the higher address, connects to it.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting.devices import expect_peers, on_listeners, open_group, open_listeners
from lightning_parablock.meeting.gloo_peers import GlooPeers
from tests.support.here import RANK

HOST = "127.0.0.1"
ELSEWHERE = "--elsewhere" in sys.argv


def main() -> None:
    """Two groups, over which a sum is right; or the name of the site that is elsewhere."""
    store = dist.TCPStore(HOST, int(os.environ["MASTER_PORT"]), 2, is_master=RANK == 0)
    (own,) = open_listeners("127.0.0.2" if ELSEWHERE and RANK == 0 else HOST, None)
    store.set(f"listener {RANK}", f"{own.address} {own.port}")
    address, port = store.get(f"listener {1 - RANK}").decode().split()
    other = address, int(port)
    if ELSEWHERE and RANK == 1:
        (own,) = open_listeners(HOST, None)
    expect_peers(GlooPeers("version 1 of federation f", (own.address, own.port), {"ab"[1 - RANK]: other}))
    try:
        with on_listeners():
            dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=RANK, world_size=2)
        group = open_group("gloo", 30.0)
    except ProtocolError as error:
        print(error)
        sys.stdout.flush()
        if RANK == 0:
            store.wait(["refused"])  # the other one may still be connecting, and this rank has the store
        else:
            store.set("refused", "")
        os._exit(0)  # without the goodbyes of a group that was not opened
    value = torch.ones(3)
    dist.all_reduce(value, group=group)
    assert value.tolist() == [2.0] * 3
    print("CONNECTED")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
