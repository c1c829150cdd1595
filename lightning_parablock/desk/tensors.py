"""Tensors between sites: raw little-endian bytes with dtype, shape and checksums; long ones come in chunks.

A transfer that breaks continues after the last good chunk. It ends when nothing has arrived for the limit: a slow
donor is not a lost one.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.desk.caller import NOBODY, call
from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.errors import ProtocolError, UnreachableError
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.system.tensor_bytes import (
    DTYPES,
    bytes_of,
    memory_of,
    n_bytes_of,
    name_of,
    read_shape,
    refuse_other_truths,
)

CHUNK_BYTES = 4 << 20
_PAUSE_S = 0.2


def as_message(tensor: Tensor) -> tuple[dict[str, Any], memoryview]:
    """A tensor as JSON and bytes; no copy is made of one on the CPU without gaps.

    Raises:
        TypeError: values of this kind cannot be sent.
    """
    view = bytes_of(tensor)
    return {**_described(tensor), "checksum": zlib.crc32(view)}, view


def from_message(said: Mapping[str, Any], body: bytes | bytearray | memoryview) -> Tensor:
    """The tensor that :func:`as_message` wrote, on the CPU, in memory of its own.

    Raises:
        ProtocolError: bytes, shape and checksum do not fit together, or a truth value is neither 0 nor 1.
    """
    dtype, shape = _read_description(said)
    if memoryview(body).nbytes != n_bytes_of(dtype, shape) or zlib.crc32(body) != said.get("checksum"):
        raise ProtocolError(f"a tensor of shape {list(shape)} has arrived with wrong bytes")
    refuse_other_truths(dtype is torch.bool, body)
    flat = _empty(dtype, shape)
    _store(flat, 0, body)
    return flat.view(dtype).view(shape)


def chunk_reply(
    said: Mapping[str, Any], tensor: Tensor, version: str, pace: Callable[[int], None] | None = None
) -> Reply:
    """The part of a tensor that a call of :func:`pull_tensor` asks for: what the donor's handler returns.

    Args:
        said: What the call says; it tells the handler which tensor is meant.
        tensor: The whole tensor, not changed while it is pulled. One that is not on the CPU, or has gaps, is copied
            whole for each part.
        version: Names the tensor's values: another version has another name, which the puller notices.
        pace: See :class:`Reply`.

    Raises:
        ProtocolError: the call asks for a part that the tensor does not have.
    """
    view = bytes_of(tensor)
    try:
        first, n_bytes = int(said["first_byte"]), int(said["chunk_bytes"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError("a call for a part of a tensor must say first_byte and chunk_bytes") from error
    if first < 0 or n_bytes < 1 or first > len(view):
        raise ProtocolError(f"a tensor of {len(view)} bytes has no {n_bytes} bytes from byte {first} on")
    part = view[first : first + n_bytes]
    about = {"version": version, "first_byte": first, "checksum": zlib.crc32(part)}
    return Reply({**_described(tensor), **about}, part, pace)


def pull_tensor(
    address: str,
    name: str,
    said: Mapping[str, Any],
    limit_s: float,
    chunk_bytes: int = CHUNK_BYTES,
    *,
    caller: Identity = NOBODY,
    look: Callable[[], object] | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Pull a tensor from another site's desk, chunk by chunk.

    Args:
        address: Of the donor's desk.
        name: Of a call whose handler returns :func:`chunk_reply`.
        said: Which tensor is meant.
        limit_s: Longest time for which nothing may arrive. Broken connections are opened again until then.
        chunk_bytes: Bytes of a chunk.
        caller: Who calls.
        look: Called several times a second; raises to give up.
        like: Has the dtype and the shape that the tensor must have; None to take what comes.

    Returns:
        The tensor, on the CPU.

    Raises:
        UnreachableError: nothing has arrived for the limit; it says how much had.
        RefusedError: the donor's handler raised an error.
        ProtocolError: the tensor is not like ``like``, its values changed while they were pulled, or a truth value is
            neither 0 nor 1.
    """
    pull = _Pull(like)
    wait = LimitedWait(limit_s, reports=LATE)
    while not pull.is_complete:
        asked = {**said, "first_byte": pull.done, "chunk_bytes": chunk_bytes}
        before = pull.done
        try:
            pull.take(
                call(address, name, asked, None, max(0.1, wait.remaining_s), caller=caller, repeatable=True, look=look)
            )
            problem = "wrong checksums"
        except UnreachableError as error:
            problem = str(error)
        if pull.done > before:
            wait = LimitedWait(limit_s, reports=LATE)
        elif not pull.is_complete:
            if wait.is_over:
                raise UnreachableError(
                    f"no part of a tensor ({name!r}) has arrived from {address} for {limit_s:g} s, after {pull.done} "
                    f"of {pull.total} bytes: {problem}",
                    "silent",
                )
            wait.report(lambda problem=problem: f"a tensor of {address} ({name!r}): {problem}")
            _pause(look)
    return pull.tensor


class _Pull:
    """What has arrived of one tensor."""

    def __init__(self, like: Tensor | None) -> None:
        self._like = like
        self._about: tuple[torch.dtype, tuple[int, ...], str] | None = None
        self._flat = torch.empty(0, dtype=torch.uint8)
        self.done = 0

    @property
    def total(self) -> int | str:
        """Bytes of the whole tensor."""
        return "an unknown number of" if self._about is None else self._flat.numel()

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here."""
        return self._about is not None and self.done == self._flat.numel()

    @property
    def tensor(self) -> Tensor:
        """The whole tensor."""
        assert self._about is not None
        dtype, shape, _ = self._about
        return self._flat.view(dtype).view(shape)

    def take(self, reply: Reply) -> None:
        """Add a chunk; one with a wrong checksum is left out, so that it is asked for again."""
        dtype, shape = _read_description(reply.said)
        about = (dtype, shape, str(reply.said.get("version")))
        if self._about is None:
            if self._like is not None and (dtype, shape) != (self._like.dtype, tuple(self._like.shape)):
                raise ProtocolError(
                    f"a tensor of {dtype} and shape {list(shape)} was offered where {self._like.dtype} and shape "
                    f"{list(self._like.shape)} are needed; do both sites train the same model?"
                )
            self._about, self._flat = about, _empty(dtype, shape)
        elif about != self._about:
            raise ProtocolError("a tensor has changed while it was pulled; pull it again")
        arrived = memoryview(reply.body)
        fits = reply.said.get("first_byte") == self.done and arrived.nbytes <= self._flat.numel() - self.done
        if fits and zlib.crc32(arrived) == reply.said.get("checksum"):
            refuse_other_truths(dtype is torch.bool, arrived)
            _store(self._flat, self.done, arrived)
            self.done += arrived.nbytes


def _described(tensor: Tensor) -> dict[str, Any]:
    name = name_of(tensor.dtype)
    if name not in DTYPES:
        raise TypeError(f"tensors of {tensor.dtype} cannot be sent to other sites")
    return {"dtype": name, "shape": list(tensor.shape)}


def _read_description(said: Mapping[str, Any]) -> tuple[torch.dtype, tuple[int, ...]]:
    name = said.get("dtype")
    if not isinstance(name, str) or name not in DTYPES:
        raise ProtocolError(f"a tensor of type {name!r:.40} cannot be read")
    return DTYPES[name], read_shape(said.get("shape"))


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Memory for a tensor, as bytes."""
    n_bytes = n_bytes_of(dtype, shape)
    try:
        return torch.empty(n_bytes, dtype=torch.uint8)
    except (RuntimeError, TypeError) as error:  # too much for this machine; too much for any
        raise ProtocolError(f"there is no memory for a tensor of {n_bytes} bytes that another site offers") from error


def _store(flat: Tensor, first: int, body: bytes | bytearray | memoryview) -> None:
    memory_of(flat)[first : first + memoryview(body).nbytes] = memoryview(body)


def _pause(look: Callable[[], object] | None) -> None:
    if look is not None:
        look()
    time.sleep(_PAUSE_S)
