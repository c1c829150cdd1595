"""One rank of the byte count: real exchanges of known sizes, counted by the records, at isend and by the kernel.

Usage: worker_bytes.py FOLDER. In FOLDER the ranks wait for each other, without a byte on a socket. Prints one line of
JSON a topology.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.harness.sockets import count_tcp_bytes
from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.settings import Settings, Topology
from lightning_parablock.transport.opening import Federation, open_federation, open_transport
from tests.support.engine import blocks_of, engine_on

BLOCK_SIZES = (5_000, 1, 30_001, 1_024, 2_500)
N_ROUNDS = 15
CHUNK_BYTES = 4096
_LIMIT_S = 120.0


def main() -> None:
    """Count both topologies."""
    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    # No heartbeat falls into the count.
    quiet = {"heartbeat_s": 500.0, "exchange_timeout_s": 1000.0, "chunk_bytes": CHUNK_BYTES}
    federation = open_federation(Settings(**quiet), [[r] for r in range(n_ranks)])
    for topology in get_args(Topology):
        settings = Settings(local_steps=1, delay_steps=1, block_order="sequential", topology=topology, **quiet)
        meeting = _Meeting(Path(sys.argv[1]) / topology, rank, n_ranks)
        print("COUNT " + json.dumps({"rank": rank, "topology": topology, **_count(federation, settings, meeting)}))
    assert federation.watch is not None
    assert federation.watch.close(60) == []


class _Meeting:
    """A barrier through files."""

    def __init__(self, folder: Path, rank: int, n_ranks: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._rank, self._n_ranks = folder, rank, n_ranks

    def wait_for_all(self, place: str) -> None:
        (self._folder / f"{place}.{self._rank}").touch()
        deadline_s = time.monotonic() + _LIMIT_S
        while not all((self._folder / f"{place}.{r}").exists() for r in range(self._n_ranks)):
            assert time.monotonic() < deadline_s, f"a rank did not come to {place!r}"
            time.sleep(0.01)


def _count(federation: Federation, settings: Settings, meeting: _Meeting) -> dict[str, Any]:
    model = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in BLOCK_SIZES)
    flat = FlatBlocks(model, blocks_of(model, [[str(index)] for index in range(len(BLOCK_SIZES))]))
    transport = open_transport(federation, flat, settings, device=torch.device("cpu"), backend="gloo")
    (client,) = federation.membership.clients[federation.membership.rank]
    others = [ids for ids in federation.membership.clients if client not in ids]
    engine = engine_on(flat, settings, [client], transport, *others)
    messages, original = _watch_isend()
    meeting.wait_for_all("open")
    before = count_tcp_bytes()
    meeting.wait_for_all("counted before")
    for _ in range(N_ROUNDS):
        _one_round(engine, client)
    engine.finish()
    meeting.wait_for_all("finished")
    moved = count_tcp_bytes() - before
    meeting.wait_for_all("counted after")
    dist.isend = original
    transport.close()
    return {
        "upload_bytes": [record.upload_bytes for record in engine.records],
        "download_bytes": [record.download_bytes for record in engine.records],
        "message_bytes": messages,
        "acknowledged_bytes": moved.acknowledged,
        "received_bytes": moved.received,
    }


def _one_round(engine: RoundEngine, client: int) -> None:
    engine.begin_round()
    engine.begin_turn(client)
    with torch.no_grad():
        for parameter in engine.flat.parameters(engine.block):
            parameter += 1 + client
    engine.after_step()
    engine.end_turn()
    engine.end_round()


def _watch_isend() -> tuple[list[int], Any]:
    """Sizes of all messages that are sent from now on, and what to restore."""
    sizes: list[int] = []
    original = dist.isend

    def isend(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return original(tensor, *args, **kwargs)

    dist.isend = isend
    return sizes, original


if __name__ == "__main__":
    main()
