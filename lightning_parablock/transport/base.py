"""What the engine knows about a transport: submit the deltas of a round, wait for the commit later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_parablock.masking.scales import Scale
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregator, MeanAggregator
from lightning_parablock.server.shard import ServerShard, StatePiece
from lightning_parablock.server.uploads import Upload


@dataclass(frozen=True)
class ExchangeFacts:
    """Times in seconds of ``time.time()``, bytes of this rank's messages with headers, and the gradient norm.

    Attributes:
        gradient_norm: Weighted mean of the clients' gradient norms, the same bits on every rank; NaN where no client
            has trained or none has a finite one.
        is_dropped: Whether the members changed before it was complete, so that its commit is W as it was before it.
    """

    start_s: float
    ready_s: float
    end_s: float
    upload_bytes: int
    download_bytes: int
    gradient_norm: float = 0.0
    is_dropped: bool = False


class Exchange(ABC):
    """An exchange (upload, aggregate, download of one block) that is under way.

    Args:
        brings_increment: Whether what is received is the increment of W, as with a lossy codec, and not W itself.
    """

    def __init__(self, *, brings_increment: bool) -> None:
        self._brings_increment = brings_increment

    def wait(self, before: Callable[[], Tensor]) -> Tensor:
        """Block until the commit is here and return the new W of the block, shape (numel,), float32, the caller's own.

        To be called once.

        Args:
            before: Gives W of the block before this commit, same shape; not changed.

        Raises:
            PeerError: a client was lost, was silent for too long, or sent what does not belong here; the message names
                client, round and block.
        """
        received = self._received()
        return received.add_(before()) if self._brings_increment else received

    def when_over(self, note: Callable[[], None]) -> None:
        """Call ``note`` once, when :meth:`wait` would no longer have to wait, also after an error.

        It is called on any thread, here at once: an exchange that is under way after its submission has its own way.
        """
        note()

    @abstractmethod
    def _received(self) -> Tensor:
        """Block until the commit is here and return what was received of it, which the caller may change."""

    @property
    @abstractmethod
    def facts(self) -> ExchangeFacts:
        """Times and bytes; complete only after :meth:`wait` has returned."""


class Transport(ABC):
    """Carries exchanges between the ranks. All ranks submit the same rounds and blocks in the same order.

    Args:
        server: This rank's shard of the server.
        aggregator: What travels, and what a server makes of it; None for each client's delta and their mean.
    """

    def __init__(self, server: ServerShard, aggregator: Aggregator | None = None) -> None:
        self._server = server
        self._aggregator: Aggregator = aggregator if aggregator is not None else MeanAggregator()

    @property
    def server(self) -> ServerShard:
        """This rank's shard of the server."""
        return self._server

    def settle(self, round_index: int) -> None:
        """All clients have merged the round: the server's state before it is not needed any more."""
        self._server.settle(round_index)
        self._aggregator.settle(round_index)

    def server_state(self) -> list[StatePiece]:
        """This rank's pieces of the server's state after the settled rounds."""
        return self._server.state()

    def load_server_state(self, pieces: Iterable[StatePiece]) -> None:
        """Take over what overlaps with this rank's shard, from pieces that any number of ranks have saved."""
        self._server.load_state(pieces)

    def told(self, key: Key) -> Scale | None:
        """What an exchange that is over tells later ones of the sizes of its block's values; None for nothing."""
        return self._aggregator.told(key)

    def aggregator_state(self) -> list[list[Any]]:
        """What later exchanges need of earlier ones beside W and the server's state, the same on all ranks."""
        return self._aggregator.state()

    def load_aggregator_state(self, state: Iterable[Iterable[Any]]) -> None:
        """Restore :meth:`aggregator_state`, before what was in flight is submitted again."""
        self._aggregator.load_state(state)

    @abstractmethod
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        """Start the exchange of a block and return at once.

        Args:
            round_index: Number of the round.
            block: Index of the block that its clients trained.
            uploads: One per client of the cohort that this rank hosts, by client id; may be empty.
            cohort: Ids of all clients that trained the block in the round, ascending.
        """

    def await_round(self, round_index: int) -> None:
        """Wait until a round may begin. With fixed members it always may."""
        del round_index

    def expect(self, round_index: int, work: Mapping[int, Sequence[int]]) -> None:
        """A round begins, whose clients train these blocks: their exchanges will be submitted at its end.

        Args:
            round_index: Number of the round.
            work: Block -> ids of the clients that train it, on all ranks.
        """
        del round_index, work

    def describe_client(self, client: int) -> str:
        """Name the client in messages."""
        return f"client {client}"

    @abstractmethod
    def check(self, round_index: int, block: int) -> None:
        """Raise the PeerError that is already known, if any, without waiting; round and block go into its message."""

    @abstractmethod
    def note_step(self, round_index: int) -> None:
        """Note a local step, so that other ranks can tell where this one is; does not wait."""

    @abstractmethod
    def announce_end(self, rounds: int) -> None:
        """Tell the other ranks that this one takes part in ``rounds`` rounds and no more, without waiting."""

    @abstractmethod
    def close(self) -> None:
        """End the threads, and release the groups if nothing is pending; never waits for another rank."""
