"""What the engine knows of a transport: submit the deltas of a round, later wait for the commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_parablock.codecs.feedback import Residual
from lightning_parablock.server.shard import ServerShard


@dataclass(frozen=True)
class Upload:
    """One client's contribution to an exchange.

    Attributes:
        delta: Shape (numel of the block,), float32; neither the caller nor the transport changes it afterwards.
        weight: n_i of the mean: 1 for uniform weighting, else the samples of the round; 0 for a client that did not
            train, or whose delta was not finite.
        residual: What a lossy codec left out before and will leave out now; None where it leaves nothing out.
        gradient_norm: Of the block at the client's first local step; 0 where nobody asks for it.
    """

    delta: Tensor
    weight: int = 1
    residual: Residual | None = None
    gradient_norm: float = 0.0


@dataclass(frozen=True)
class ExchangeFacts:
    """Times in seconds of ``time.time()`` and bytes of this rank's messages, headers included; and what came along.

    Attributes:
        gradient_norm: Weighted mean of the clients' gradient norms, the same bits on every rank; NaN where no client
            has trained, or none has a finite one.
    """

    start_s: float
    ready_s: float
    end_s: float
    upload_bytes: int
    download_bytes: int
    gradient_norm: float = 0.0


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
    """Carries exchanges between the ranks. All ranks submit the same rounds and blocks in the same order.

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
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        """Start the exchange of a block and return at once.

        Args:
            round_index: Number of the round.
            block: Index of the block that its clients trained.
            uploads: By client id, one of each client of the cohort that this rank hosts; perhaps none.
            cohort: Ids of all clients that trained the block in the round, ascending.
        """

    def describe_client(self, client: int) -> str:
        """Name the client in messages."""
        return f"client {client}"

    @abstractmethod
    def check(self, round_index: int, block: int) -> None:
        """Raise the PeerError that is already known, if any, without waiting; the place is for its message."""

    @abstractmethod
    def note_step(self, round_index: int) -> None:
        """Take note of a local step, so that other ranks can say where this one is; does not wait."""

    @abstractmethod
    def announce_end(self, rounds: int) -> None:
        """Let the other ranks know that this one takes part in ``rounds`` rounds and no more, without waiting."""

    @abstractmethod
    def close(self) -> None:
        """End the threads and release the groups, where nothing is pending; never waits for another rank."""
