"""The default process group. Nothing here notices a lost rank before the group's own timeout.

Values of ranks travel as JSON and the bytes of tensors, which can express nothing but data. Lengths are bounded, and
memory is taken piece by piece, as the bytes arrive.

Within a run use the strategy's collectives, which run these under the watch. Without it are the probe, strategies of
other packages, and ranks that meet again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting.devices import on_listeners
from lightning_parablock.system.payloads import from_bytes, to_bytes

T = TypeVar("T")

PIECE_BYTES = 16 << 20
"""Most bytes of one rank that a single collective carries."""
MOST_BYTES = 1 << 40
"""Longest value that a rank may announce."""


def is_open() -> bool:
    """Whether this process has joined a default process group."""
    return dist.is_available() and dist.is_initialized()


def own_rank() -> int:
    """This process's rank in the group, which must be open."""
    return dist.get_rank()


def gather_objects(value: T) -> list[T]:
    """The value of each rank, in rank order, on every rank; collective. ``[value]`` if no group is open."""
    return gather_in_group(value) if is_open() else [value]


def gather_in_group(value: T, what: str = "a gathered value") -> list[T]:
    """The same, over a group that must be open.

    Args:
        value: Tensors and plain values, or records of this package.
        what: Names it in messages.

    Raises:
        ConfigurationError: the value holds something else.
        ProtocolError: another rank has sent something else.
    """
    payload = to_bytes(value, what)
    lengths = _gathered(torch.tensor([len(payload)], dtype=torch.int64))
    sizes = [_bounded(int(length), rank, what) for rank, length in enumerate(lengths)]
    received = [bytearray() for _ in sizes]
    for start in range(0, max(sizes), PIECE_BYTES):
        width = min(PIECE_BYTES, max(sizes) - start)
        pieces = _gathered(_tensor_of(payload[start : start + width], width))
        for rank, size in enumerate(sizes):
            received[rank] += _bytes_of(pieces[rank], max(0, min(width, size - start)))
    return [from_bytes(data, f"{what} of rank {rank}", _landing()) for rank, data in enumerate(received)]


def broadcast_in_group(value: T, source: int, what: str = "a broadcast value") -> T:
    """The value of rank ``source`` on every rank; collective, over a group that must be open.

    Args:
        value: At the source: tensors and plain values, or records of this package. Not looked at elsewhere.
        source: A rank.
        what: Names it in messages.

    Raises:
        ConfigurationError: the value holds something else.
        ProtocolError: the source has sent something else.
    """
    is_source = dist.get_rank() == source
    payload = to_bytes(value, what) if is_source else b""
    length = torch.tensor([len(payload)], dtype=torch.int64, device=_device())
    dist.broadcast(length, source)
    size = _bounded(int(length), source, what)
    received = bytearray()
    for start in range(0, size, PIECE_BYTES):
        width = min(PIECE_BYTES, size - start)
        piece = _tensor_of(payload[start : start + width], width).to(_device())
        dist.broadcast(piece, source)
        if not is_source:
            received += _bytes_of(piece, width)
    return from_bytes(payload if is_source else received, f"{what} of rank {source}", _landing())


def _gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    tensor = tensor.to(_device())
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor)
    return [one.cpu() for one in found]


def _device() -> torch.device:
    """Where the group's backend wants tensors to be."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _landing() -> torch.device:
    """Where tensors come that were on the sender's accelerator."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _bounded(length: int, rank: int, what: str) -> int:
    if not 0 <= length <= MOST_BYTES:
        raise ProtocolError(f"{what}: rank {rank} announces {length} bytes; at most {MOST_BYTES} are taken")
    return length


def _tensor_of(data: bytes, width: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(data.ljust(width, b"\0")), dtype=torch.uint8)


def _bytes_of(piece: torch.Tensor, length: int) -> bytes:
    return piece[:length].cpu().numpy().tobytes()


@contextlib.contextmanager
def opened_default_group(limit_s: float) -> Generator[int]:
    """Open a gloo group as the environment describes it, and release it at the end; yields the number of ranks.

    Args:
        limit_s: Time limit in seconds for the ranks to meet, and for each collective.

    Raises:
        RuntimeError: the ranks did not meet, or one was lost; raised by torch.
    """
    try:
        with on_listeners():
            dist.init_process_group("gloo", timeout=timedelta(seconds=limit_s))
        yield dist.get_world_size()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
