"""One rank of a group in which rank 1 does what a stranger could do: usage worker_objects.py FOLDER."""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting import default_group
from lightning_parablock.meeting.default_group import broadcast_in_group, gather_in_group
from tests.unit.test_plain_payloads import evil_payloads


def main() -> None:
    """Values of several pieces and of unequal lengths arrive; what is no value is refused."""
    rank, mark = int(os.environ["RANK"]), Path(sys.argv[1]) / "mark"
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    default_group.PIECE_BYTES = 1000
    of_all = [{"rank": r, "values": torch.arange(500 * r), "text": "x" * 100 * r} for r in range(2)]
    found = gather_in_group(of_all[rank])
    assert [(one["rank"], one["values"].tolist(), one["text"]) for one in found] == [
        (one["rank"], one["values"].tolist(), one["text"]) for one in of_all
    ]
    for source in range(2):
        sent = broadcast_in_group(of_all[source] if rank == source else object(), source)
        assert torch.equal(sent["values"], of_all[source]["values"])
    for payload in evil_payloads(mark).values():
        _refuses(rank, payload)
    for length in (-1, default_group.MOST_BYTES + 1):
        _refuses(rank, b"", length)
    assert not mark.exists()
    print("REFUSED")


def _refuses(rank: int, payload: bytes, length: int | None = None) -> None:
    """Rank 1 takes part in a gather and in a broadcast by hand; rank 0 as always."""
    announced = torch.tensor([len(payload) if length is None else length])
    if rank == 0:
        for collective in (lambda: gather_in_group("a value"), lambda: broadcast_in_group(None, 1)):
            try:
                collective()
            except ProtocolError as error:
                assert "rank 1" in str(error), error
            else:
                raise AssertionError("it was taken")
        return
    lengths = [torch.empty_like(announced) for _ in range(2)]
    dist.all_gather(lengths, announced)
    longest = max(map(int, lengths)) if length is None else 0
    for start in range(0, longest, default_group.PIECE_BYTES):
        width = min(default_group.PIECE_BYTES, longest - start)
        piece = torch.frombuffer(bytearray(payload[start : start + width].ljust(width, b"\0")), dtype=torch.uint8)
        dist.all_gather([torch.empty_like(piece) for _ in range(2)], piece)
    dist.broadcast(announced, 1)
    for start in range(0, len(payload), default_group.PIECE_BYTES):
        dist.broadcast(torch.frombuffer(bytearray(payload[start:][: default_group.PIECE_BYTES]), dtype=torch.uint8), 1)


if __name__ == "__main__":
    main()
