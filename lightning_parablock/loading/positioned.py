"""A client's training loader as a stream of its own: the same batches again from any position.

What a loader yields is a function of the run's seed, the client, the epoch and the position: it draws its order, and
whatever its data set draws in this process, from a random stream apart from the training's. So a resumed run can pass
over what was trained already, batch by batch, and continues with the very next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lightning_parablock.loading.loader_proxy import LoaderProxy
from lightning_parablock.random_state import Stream
from lightning_parablock.seeds import derive_seed

Position = dict[str, Any]
"""epoch; cycle: how often the loader began again within it; batches: how many it has yielded since; stream: the random
stream's state, where the loader can resume without passing over what it has yielded."""


@dataclass(frozen=True)
class LoaderStart:
    """Where an iteration begins.

    Attributes:
        seed: Seed of the streams of this loader and client.
        epoch: Number of the epoch under way.
        passed: The position to resume from, up to which batches are passed over; None for a new fit.
    """

    seed: int
    epoch: int
    passed: Position | None = None


class PositionedLoader(LoaderProxy):
    """A loader that knows its position, and can begin there again.

    Args:
        loader: A DataLoader or another iterable of batches.
        start: Tells where an iteration begins; asked when its first batch is wanted.
    """

    def __init__(self, loader: Any, start: Callable[[PositionedLoader], LoaderStart]) -> None:
        generators = [(generator, generator.initial_seed()) for generator in generators_of(loader)]
        super().__init__(loader, _own={"start": start, "generators": generators, "position": None, "stream": None})

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        # A generator: it begins with the first batch that is wanted, when the epoch's number is known.
        start: LoaderStart = self._own["start"](self)
        passed = start.passed if start.passed is not None and start.passed["epoch"] == start.epoch else None
        position = self._own["position"] = self._begin(start.epoch, passed)
        stream = self._own["stream"] = Stream(derive_seed(start.seed, position["epoch"], position["cycle"]))
        batches = self._begin_stream(stream)
        if passed is not None and self._is_stateful:
            position["batches"], stream.state = passed["batches"], passed["stream"]
        to_pass = 0 if passed is None or self._is_stateful else passed["batches"]
        while True:
            with stream.use():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            position["batches"] += 1
            if position["batches"] > to_pass:
                yield batch
            elif hasattr(self._loader, "idles"):
                self._loader.idles()  # what was noted about a batch that is not trained on again

    @property
    def _is_stateful(self) -> bool:
        """Whether the loader resumes by itself, from its own state, which Lightning restores."""
        return hasattr(self._loader, "load_state_dict")

    def _begin(self, epoch: int, passed: Position | None) -> Position:
        if passed is not None:
            return {"epoch": epoch, "cycle": passed["cycle"], "batches": 0}
        before: Position | None = self._own["position"]
        begun_before = before is not None and before["epoch"] == epoch
        return {"epoch": epoch, "cycle": before["cycle"] + 1 if begun_before and before else 0, "batches": 0}

    def _begin_stream(self, stream: Stream) -> Iterator[Any]:
        with stream.use():
            # The loader's own generator would continue from epoch to epoch: here each has a seed of its own.
            seed_generators(self._own["generators"])
            return iter(self._loader)


def position_of(loader: PositionedLoader, fetched_ahead: int) -> Position | None:
    """Where the training stands in a loader; None before its first batch.

    Args:
        loader: The loader.
        fetched_ahead: Batches that it has yielded and no step has trained on.
    """
    own = loader._own  # pyright: ignore[reportPrivateUsage]
    if own["position"] is None:
        return None
    own["position"]["stream"] = own["stream"].state if loader._is_stateful else None  # pyright: ignore[reportPrivateUsage]
    return {**own["position"], "batches": own["position"]["batches"] - fetched_ahead}


def seed_generators(generators: Iterable[tuple[torch.Generator, int]]) -> None:
    """Give generators, which would continue from pass to pass, a seed from the current random stream and their own."""
    for generator, seed in generators:
        generator.manual_seed(derive_seed(seed, int(torch.randint(2**62, ()).item())))


def generators_of(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers have of their own."""
    holders = (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    )
    found = (getattr(holder, "generator", None) for holder in holders)
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())
