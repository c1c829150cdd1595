"""How long an epoch is where the clients' data differ: the same number of batches for all of them.

Either as many as the longest has: a client whose data are used up idles to the epoch's end, and the others continue. Or
as many as the shortest has. Where every length is known, the number is known from the start. Where one is not, as with
most streams, each client fetches a window of batches ahead and all clients exchange how many they found; the first
window that no client can fill (or that some client cannot) is the last one of the epoch, for all of them. No client
ever waits in an epoch that another one has left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning_parablock.errors import DataError
from lightning_parablock.federation.collectives import Gather
from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.loading.loader_proxy import LoaderProxy

FIRST_WINDOW_BATCHES = 16
"""Batches to fetch ahead while the number of local steps is not known; an epoch's length does not depend on it."""


@dataclass(frozen=True)
class Epoch:
    """How the clients agree on the length of an epoch.

    Attributes:
        stage: "train", "validate", "test" or "predict", for messages.
        goes_on: Whether an epoch lasts as long as the longest client's data.
        window_batches: Batches to fetch ahead where lengths are not known.
        gather: Collects a value of every client, in client order; collective.
        names: How clients are named in messages.
        settled: Replaces the number of batches of a training epoch that the clients' lengths give by the one that the
            founders of a run have agreed on; collective. None where there are no others than those who agree now.
    """

    stage: str
    window_batches: int
    gather: Gather
    goes_on: bool = False
    names: ClientNames = NO_NAMES
    settled: Callable[[int], int] | None = None


class EqualLengthLoader(LoaderProxy):
    """A training loader whose epoch has the number of batches that the clients agree on.

    Where that is more than this client has, its last batch is repeated and not trained on: :meth:`idles` reports each
    repetition once.
    """

    def __init__(self, loader: Any, epoch: Epoch) -> None:
        super().__init__(loader, _epoch=epoch, _idle=deque[bool](), _last=None)

    def idles(self) -> bool:
        """Whether the next batch, in the order in which they were yielded, is to be skipped."""
        return bool(self._idle) and self._idle.popleft()

    def _real(self, batch: Any) -> Any:
        if batch is None:
            raise DataError(
                "the training loader yielded None: this client would make fewer steps than the others; leave bad "
                "samples out in the data set"
            )
        self._idle.append(False)
        self.__dict__["_last"] = batch
        return batch

    def _again(self, n_batches: int) -> Iterator[Any]:
        for _ in range(n_batches):
            self._idle.append(True)
            yield self._last


class SizedLoader(EqualLengthLoader):
    """``n_batches`` of a loader whose length is ``n_own``."""

    def __init__(self, loader: Any, epoch: Epoch, n_own: int, n_batches: int) -> None:
        super().__init__(loader, epoch)
        self.__dict__.update(_n_own=min(n_own, n_batches), _n_batches=n_batches)

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[Any]:
        self._idle.clear()
        found = 0
        for batch in islice(self._loader, self._n_own):
            found += 1
            yield self._real(batch)
        # A loader that restores its own state resumes in the middle.
        if found < self._n_own and not hasattr(self._loader, "load_state_dict"):
            raise DataError(
                f"the training loader said it had {len(self._loader)} batches and ended after {found}: the other "
                "clients count on its length; correct __len__ of the data set, or leave it out"
            )
        yield from self._again(self._n_batches - self._n_own)


class StreamLoader(EqualLengthLoader):
    """A loader without a length; its epoch ends when the last of the clients, or the first, has nothing left."""

    def __getattr__(self, name: str) -> Any:
        if name in ("state_dict", "load_state_dict"):  # its state is ahead of the training by up to a window
            raise AttributeError(name)
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        self._idle.clear()
        batches, wanted, first = iter(self._loader), self._epoch.window_batches, True
        while True:
            window = list(islice(batches, wanted))
            found = self._epoch.gather(len(window))
            if first and min(found) == 0:
                _refuse_nothing(self._epoch, found)
            n_batches = max(found) if self._epoch.goes_on else min(found)
            for batch in window[:n_batches]:
                yield self._real(batch)
            yield from self._again(n_batches - len(window))
            if n_batches < wanted:
                return
            first = False


def agree_on_length(loader: Any, epoch: Epoch) -> tuple[Any, list[int | None]]:
    """Give a loader the length that all clients keep to; collective.

    Only training has the same length everywhere. Validation, test and prediction use all of their data.

    Returns:
        The loader to use, and the number of batches of each client, None where it is not known.

    Raises:
        DataError: a client has no batches at all while others have; the same on every client.
    """
    own = length_of(loader)
    lengths: list[int | None] = list(epoch.gather(own))
    known = [n for n in lengths if n is not None]
    if 0 in known and any(lengths):
        _refuse_nothing(epoch, lengths)
    if len(known) == len(lengths):
        if epoch.stage != "train" or own is None:
            return loader, lengths
        n_batches = max(known) if epoch.goes_on else min(known)
        return SizedLoader(loader, epoch, own, epoch.settled(n_batches) if epoch.settled else n_batches), lengths
    if epoch.stage == "train":
        return StreamLoader(loader, epoch), lengths
    # Lightning adds up lengths over the clients, which waits forever for those who have none.
    return LoaderProxy(loader), lengths


def refuse_unsized(loader: Any, stage: str) -> None:
    """Refuse a training loader without a length, where sites come and go.

    Raises:
        DataError: its epoch would end where all that take part find nothing more, and these change within an epoch.
    """
    if stage == "train" and length_of(loader) is None:
        raise DataError(
            "the training loader has no length, and with elastic membership (lighthouse) an epoch has the number of "
            "batches on which the founders of the run agree; give its data set a __len__, or cut it into pieces of a "
            "known number of batches"
        )


def length_of(loader: Any) -> int | None:
    """Batches of a loader, or examples of a data set; None where it cannot tell (a stream has no length)."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def lengths_in_words(lengths: Sequence[int | None], names: ClientNames) -> str:
    """The number of batches of each client: ``3, 0``, or ``site a 3, site b 0`` where sites have names."""
    said = ["unknown" if n is None else str(n) for n in lengths]
    return ", ".join(f"{names.label(i)} {n}" if names.sites else n for i, n in enumerate(said))


def _refuse_nothing(epoch: Epoch, lengths: Sequence[int | None]) -> None:
    empty = " and ".join(epoch.names.label(client) for client, n in enumerate(lengths) if n == 0)
    raise DataError(
        f"the {epoch.stage} data of {empty} have no batch (batches of each client: "
        f"{lengths_in_words(lengths, epoch.names)}); every client needs at least one per epoch"
    )
