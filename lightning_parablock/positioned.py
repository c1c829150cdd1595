"""A client's training loader as a stream of its own: the same batches again from any position.

What a loader yields is a function of the run's seed, the client, the epoch and the position: it draws its order, and
whatever its data set draws in this process, from a random stream apart from the training's. So a resumed run can pass
over what was trained already, batch by batch, and goes on with the very next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lightning_parablock.random_state import Stream
from lightning_parablock.schedule import derive_seed

Position = dict[str, int]
"""epoch; cycle: how often the loader began anew within it; batches: how many it has yielded since."""


class PositionedLoader:
    """Stands before any iterable of batches and behaves like it in everything but the iteration.

    Args:
        loader: A DataLoader or another iterable of batches.
        seed: Seed of the stream's seeds, the client's own.
        epoch: Tells the number of the epoch that runs.
        passed: The position to go on from, where a run is resumed: its first epoch passes over these batches.
    """

    def __init__(self, loader: Any, seed: int, epoch: Callable[[], int], passed: Position | None = None) -> None:
        generators = [(generator, generator.initial_seed()) for generator in _generators(loader)]
        own = {"loader": loader, "seed": seed, "epoch": epoch, "passed": passed, "generators": generators}
        self.__dict__["_own"] = {**own, "position": None}

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        """The loader's class, so that it passes for one."""
        return self._own["loader"].__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own["loader"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._own["loader"], name, value)

    def __len__(self) -> int:
        return len(self._own["loader"])

    def __iter__(self) -> Iterator[Any]:
        # A generator: it begins with the first batch that is wanted, when the epoch's number is known.
        loader, position, to_pass = self._own["loader"], *self._begin()
        stream = Stream(derive_seed(self._own["seed"], "epoch", position["epoch"], "cycle", position["cycle"]))
        with stream.use():
            # A generator of the loader's own would go on from epoch to epoch: here it begins each one anew.
            for generator, seed in self._own["generators"]:
                generator.manual_seed(derive_seed(seed, int(torch.randint(2**62, ()).item())))
            batches = iter(loader)
        while True:
            with stream.use():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            position["batches"] += 1
            if position["batches"] > to_pass:
                yield batch

    def _begin(self) -> tuple[Position, int]:
        own, epoch = self._own, self._own["epoch"]()
        passed, own["passed"] = own["passed"], None
        if passed is not None and passed["epoch"] == epoch:
            own["position"] = {**passed, "batches": 0}
            return own["position"], passed["batches"]
        before: Position | None = own["position"]
        cycle = before["cycle"] + 1 if before is not None and before["epoch"] == epoch else 0
        own["position"] = {"epoch": epoch, "cycle": cycle, "batches": 0}
        return own["position"], 0


def position_of(loader: PositionedLoader, fetched_ahead: int) -> Position | None:
    """Where the training stands in a loader; None before its first batch.

    Args:
        loader: The loader.
        fetched_ahead: Batches that it has yielded and nobody has trained on.
    """
    position: Position | None = loader._own["position"] or loader._own["passed"]  # pyright: ignore[reportPrivateUsage]
    return None if position is None else {**position, "batches": position["batches"] - fetched_ahead}


def _generators(loader: Any) -> list[torch.Generator]:
    holders = (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    )
    found = (getattr(holder, "generator", None) for holder in holders)
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())
