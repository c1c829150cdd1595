"""What the engine knows of a transport: submit the deltas of a round, later wait for the commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_parablock.feedback import Residual
from lightning_parablock.server import ServerShard


@dataclass(frozen=True)
class Upload:
    """One client's contribution to an exchange.

    Attributes:
        delta: Shape (numel of the block,), float32; neither the caller nor the transport changes it afterwards.
        weight: n_i of the mean: 1 for uniform weighting, else the samples of the round; 0 for who did not train.
        residual: What a lossy codec left out before and will leave out now; None where it leaves nothing out.
    """

    delta: Tensor
    weight: int = 1
    residual: Residual | None = None


@dataclass(frozen=True)
class ExchangeFacts:
    """Times in seconds of ``time.time()`` and bytes of this rank's messages, headers included."""

    start_s: float
    ready_s: float
    end_s: float
    upload_bytes: int
    download_bytes: int


class Exchange(ABC):
    """An exchange (upload, aggregate, download of one block) that is under way."""

    @abstractmethod
    def wait(self) -> Tensor:
        """Block until the commit is here and return it, shape (numel,), float32, the caller's own.

        It is the new W of the block or, where the codec is lossy, its increment.

        Raises:
            PeerError: a client was lost, was silent for too long, or sent what does not belong here; the message names
                client, round and block.
        """

    @property
    @abstractmethod
    def facts(self) -> ExchangeFacts:
        """Times and bytes; complete only after :meth:`wait` has returned."""


class Transport(ABC):
    """Carries exchanges between the ranks. All ranks submit the same rounds in the same order.

    Args:
        server: This rank's shard of the server.
    """

    def __init__(self, server: ServerShard) -> None:
        self._server = server

    @property
    def server(self) -> ServerShard:
        """This rank's shard of the server."""
        return self._server

    @abstractmethod
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload]) -> Exchange:
        """Start the exchange of a round and return at once.

        Args:
            round_index: Number of the round.
            block: Index of the block that its clients trained.
            uploads: By client id, one of each client that this rank hosts.
        """

    @abstractmethod
    def check(self, round_index: int, block: int) -> None:
        """Raise the PeerError that is already known, if any, without waiting; the place is for its message."""

    @abstractmethod
    def announce_end(self, rounds: int) -> None:
        """Let the other ranks know that this one takes part in ``rounds`` rounds and no more, without waiting."""

    @abstractmethod
    def close(self) -> None:
        """End the threads and release the groups, where nothing is pending; never waits for another rank."""
