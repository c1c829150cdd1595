"""Training batches where a rank's clients take turns: each turn continues in its client's data where that client left.

A client's batches are a function of the run's seed, the client and its position alone, whichever rank hosts it and
whichever clients train between its turns. A client goes through its data pass after pass, each in an order of its own;
one that is not in the cohort stays where it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lightning_parablock.errors import DataError
from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.federation.turn_id import TurnId
from lightning_parablock.loading.positioned import LoaderStart, Position, generators_of, seed_generators
from lightning_parablock.random_state import Stream
from lightning_parablock.seeds import derive_seed

_END: Any = object()


class ClientStream:
    """One client's batches, pass after pass.

    Args:
        loader: A DataLoader, or another iterable that begins at its start each time.
        seed: Seed of this client and loader.
        client: Its number, for messages.
        names: How clients are named in messages.
    """

    def __init__(self, loader: Any, seed: int, client: int, names: ClientNames = NO_NAMES) -> None:
        self._loader, self._seed, self._name = loader, seed, names.label(client)
        self.passes = self.batches = 0
        self._stream = Stream(seed)
        self._iterator: Iterator[Any] | None = None

    def go_to(self, passes: int, batches: int) -> None:
        """The next turn begins behind so many passes and batches of the next one."""
        self.passes, self.batches, self._iterator = passes, batches, None

    def leave(self) -> None:
        """The turn is over: of a client that waits only its place is kept."""
        self._iterator, self._stream = None, Stream(self._seed)

    def next(self) -> Any:
        """The next batch."""
        for _ in range(2):
            if self._iterator is None:
                self._open()
            assert self._iterator is not None
            with self._stream.use():
                batch = next(self._iterator, _END)
            if batch is None:
                raise DataError(
                    f"the training data of {self._name} have a None in place of batch {self.batches}, counted "
                    f"from 0, of pass {self.passes}"
                )
            if batch is not _END:
                self.batches += 1
                return batch
            self.go_to(self.passes + 1, 0)
        raise DataError(f"the training data of {self._name} have no batch")

    def _open(self) -> None:
        """Begin where the client stands: the order is the pass's, what is drawn beside it the turn's.

        When a stream draws its order is unknown, so all that it draws is the pass's, and is drawn again.
        """
        of_pass = Stream(derive_seed(self._seed, self.passes))
        with of_pass.use():
            seed_generators((generator, 0) for generator in generators_of(self._loader))
            if _is_indexed(self._loader):
                self._iterator = iter(_behind(self._loader, self.passes, self.batches))
                self._stream = Stream(derive_seed(self._seed, self.passes, self.batches))
                return
            self._iterator = iter(self._loader)
            for _ in range(self.batches):
                next(self._iterator, None)
        self._stream = of_pass


class ClientsLoader:
    """Yields a batch of the client whose turn it is; in an idle turn the last batch again, which is not trained on.

    Args:
        streams: By client, of all that this rank hosts.
        n_batches: Number of batches of an epoch.
        whose_turn: Tells for whom the next batch is.
        start: Tells where an iteration begins; asked when its first batch is wanted.
    """

    def __init__(
        self,
        streams: Mapping[int, ClientStream],
        n_batches: int,
        whose_turn: Callable[[], TurnId],
        start: Callable[[ClientsLoader], LoaderStart],
    ) -> None:
        self._streams, self._n_batches, self._whose_turn, self._start = streams, n_batches, whose_turn, start
        self._turn: TurnId | None = None
        self._left_at: dict[int, tuple[int, int]] = {}
        self._epoch: int | None = None
        self._yielded = self._in_turn = 0
        self._last: Any = None

    def __len__(self) -> int:
        return self._n_batches

    def resize(self, n_batches: int) -> None:
        """From now on an epoch has so many batches, also the one under way, of which fewer have been yielded."""
        self._n_batches = n_batches

    def __iter__(self) -> Iterator[Any]:
        start = self._start(self)
        self._epoch, self._yielded = start.epoch, 0
        if start.passed is not None:
            self._go_to(start.passed)
        while self._yielded < self._n_batches:
            turn = self._whose_turn()
            if turn != self._turn:
                self._change_to(turn)
            self._yielded += 1
            self._in_turn += 1
            if turn.client is not None:
                self._last = self._streams[turn.client].next()
            elif self._last is None:
                self._last = self._some_batch()
            yield self._last

    def position(self, fetched_ahead: int) -> Position | None:
        """Where every client stands; None before the first batch. Nothing may be fetched ahead.

        Args:
            fetched_ahead: Batches that were yielded and no step has trained on.
        """
        assert not fetched_ahead, "a loader of known length is not asked for batches ahead"
        if self._epoch is None:
            return None
        return {
            "epoch": self._epoch,
            "yielded": self._yielded,
            "in_turn": self._in_turn,
            "turn": None if self._turn is None else [self._turn.round, self._turn.turn, self._turn.client],
            "stands": [[client, *place] for client, place in self._left_at.items()],
        }

    def _go_to(self, position: Position) -> None:
        """Every client stands where its turn began; of the turn that was open the batches are fetched again."""
        self._yielded = position["yielded"] if position["epoch"] == self._epoch else 0
        for client, passes, batches in position["stands"]:
            self._left_at[client] = (passes, batches)
            self._streams[client].go_to(passes, batches)
        if position["turn"] is None:
            return
        self._turn, self._in_turn = TurnId(*position["turn"]), position["in_turn"]
        for _ in range(self._in_turn if self._turn.client is not None else 0):
            self._last = self._streams[self._turn.client].next()  # type: ignore[index]

    def _change_to(self, turn: TurnId) -> None:
        if self._turn is not None and self._turn.client is not None:
            left = self._streams[self._turn.client]
            left.leave()
            self._left_at[self._turn.client] = (left.passes, left.batches)
        self._turn, self._in_turn = turn, 0

    def _some_batch(self) -> Any:
        """Lightning needs a batch also for a step in which no client trains."""
        stream = copy.copy(next(iter(self._streams.values())))
        stream.leave()
        return stream.next()


def _is_indexed(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)  # pyright: ignore[reportUnknownMemberType]


def _behind(loader: Any, passes: int, batches: int) -> Any:
    """The loader without the first batches of a pass, none of which is fetched."""
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    order: Any = getattr(loader, name)
    holders: list[Any] = [order, getattr(order, "sampler", None)]
    for holder in holders:
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(passes)
    rest = copy.copy(loader)
    vars(rest).update({name: list(order)[batches:], "_iterator": None})  # DataLoader forbids to set it
    return rest
