"""How long an epoch is where the clients' data differ: every client makes as many batches as the shortest one.

Where every length is known, the smallest counts from the start. Where one is not, as with most streams, each client
fetches a window of batches ahead and all tell each other how many they found; the first window that somebody cannot
fill is the last one of the epoch, for everybody. No client ever waits in an epoch that another one has left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning_parablock.errors import DataError

Gather = Callable[[Any], Sequence[Any]]


@dataclass(frozen=True)
class Epoch:
    """How the clients agree on one.

    Attributes:
        stage: "train", "validate", "test" or "predict", for messages.
        window_batches: Batches to fetch ahead where lengths are not known.
        gather: Collects a value of every client, in client order; collective.
    """

    stage: str
    window_batches: int
    gather: Gather


class LoaderOfOthers:
    """Stands before an iterable of batches and passes for it, but for its length and its end."""

    def __init__(self, loader: Any, epoch: Epoch) -> None:
        self.__dict__.update(_loader=loader, _epoch=epoch)

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        """The loader's class."""
        return self._loader.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)

    def __iter__(self) -> Iterator[Any]:
        yield from self._loader


class Shortened(LoaderOfOthers):
    """The first ``n_batches`` of a loader that says it has at least so many."""

    def __init__(self, loader: Any, epoch: Epoch, n_batches: int) -> None:
        super().__init__(loader, epoch)
        self.__dict__["_n_batches"] = n_batches

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[Any]:
        found = 0
        for batch in islice(self._loader, self._n_batches):
            found += 1
            yield _something(batch)
        # A loader that restores its own state goes on in the middle.
        if found < self._n_batches and not hasattr(self._loader, "load_state_dict"):
            raise DataError(
                f"the training loader said it had {len(self._loader)} batches and ended after {found}: the other "
                "clients count on its length; correct __len__ of the data set, or leave it out"
            )


class Streamed(LoaderOfOthers):
    """A loader without a length; its epoch ends for all clients with the first that has nothing left."""

    def __getattr__(self, name: str) -> Any:
        if name in ("state_dict", "load_state_dict"):  # its state is ahead of the training by up to a window
            raise AttributeError(name)
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        batches, wanted, first = iter(self._loader), self._epoch.window_batches, True
        while True:
            window = deque(islice(batches, wanted))
            found = self._epoch.gather(len(window))
            if first and min(found) == 0:
                _refuse_nothing("train", found)
            for _ in range(min(found)):
                yield _something(window.popleft())
            if min(found) < wanted:
                return
            first = False


def agree_on_length(loader: Any, epoch: Epoch) -> tuple[Any, list[int | None]]:
    """Give a loader the length that all clients can keep to; collective.

    Only training is cut to the shortest client. Validation, test and prediction use all of their data.

    Returns:
        The loader to use, and the number of batches of each client, None where it is not known.

    Raises:
        DataError: a client has no batches at all while others have; the same on every client.
    """
    lengths: list[int | None] = list(epoch.gather(_length(loader)))
    known = [n for n in lengths if n is not None]
    if 0 in known and any(lengths):
        _refuse_nothing(epoch.stage, lengths)
    if len(known) == len(lengths):
        return (Shortened(loader, epoch, min(known)) if epoch.stage == "train" else loader), lengths
    if epoch.stage == "train":
        return Streamed(loader, epoch), lengths
    # Lightning adds up lengths over the clients, which waits forever for those who have none.
    return LoaderOfOthers(loader, epoch), lengths


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _refuse_nothing(stage: str, lengths: Sequence[int | None]) -> None:
    empty = ", ".join(str(client) for client, n in enumerate(lengths) if n == 0)
    raise DataError(
        f"the {stage} data of client {empty} have no batch (batches of each client: {', '.join(map(str, lengths))}); "
        "every client needs at least one an epoch"
    )


def _something(batch: Any) -> Any:
    if batch is None:
        raise DataError(
            "the training loader yielded None: this client would make fewer steps than the others; leave bad samples "
            "out in the data set"
        )
    return batch
