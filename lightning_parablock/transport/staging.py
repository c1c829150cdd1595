"""How communication threads work alongside the training: nothing to do on a CPU, a stream of their own on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override


@dataclass(frozen=True)
class _Mark:
    """The position of the training thread's stream at a submission."""

    event: torch.cuda.Event
    stream: torch.cuda.Stream


class Staging:
    """Staging for a model on the CPU: none."""

    pins_memory = False

    def mark(self) -> object:
        """Called on the training thread at submission; the result goes to :meth:`entered` and :meth:`hand_over`."""
        return None

    @contextlib.contextmanager
    def entered(self, mark: object) -> Generator[None]:
        """Surrounds the work of one exchange on a communication thread."""
        yield

    def hand_over(self, commit: Tensor, mark: object) -> Tensor:
        """Bring a tensor of a communication thread to the model, safe to use and to free on the training thread."""
        return commit


class CudaStaging(Staging):
    """Staging for a model on a GPU: messages are staged through pinned memory, or stay on the device with NCCL.

    Not run on the project's machines, which have no GPU: see docs/assumptions-and-limits.md.

    Args:
        device: The model's device.
    """

    pins_memory = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @override
    def mark(self) -> object:
        stream = torch.cuda.current_stream(self._device)
        event = torch.cuda.Event()
        event.record(stream)
        return _Mark(event, stream)

    @override
    @contextlib.contextmanager
    def entered(self, mark: object) -> Generator[None]:
        assert isinstance(mark, _Mark)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(mark.event)
            yield
            self._stream.synchronize()

    @override
    def hand_over(self, commit: Tensor, mark: object) -> Tensor:
        assert isinstance(mark, _Mark)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            there = commit.to(self._device)
            # Otherwise its memory could be reused by the next exchange while the training stream still reads it.
            there.record_stream(mark.stream)
            self._stream.synchronize()
        return there


def staging_of(device: torch.device) -> Staging:
    """The staging that fits the model's device."""
    return CudaStaging(device) if device.type == "cuda" else Staging()
