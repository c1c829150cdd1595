"""What cannot work with secure sums, by who takes part: refused by name before any training."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.callbacks.sight import ClientSight
from lightning_parablock.callbacks.timeline import Timeline
from lightning_parablock.checks import require
from lightning_parablock.masking.ring import Ring
from lightning_parablock.server.aggregations import SecureAggregation
from lightning_parablock.settings import Settings

_WITH = "with aggregation='secure'"
Hosted = Sequence[Collection[int]]


def refuse_insecure_sums(settings: Settings, hosted: Hosted, n_blocks: int) -> None:
    """Refuse rounds in whose sums too few sites, or too many clients, could meet.

    Args:
        settings: The run's settings; without secure sums nothing is refused.
        hosted: For each rank the clients that it hosts.
        n_blocks: Number of blocks.

    Raises:
        ConfigurationError: says how many sites a sum could have.
    """
    choice = settings.aggregation
    if not isinstance(choice, SecureAggregation):
        return
    fewest = min((_fewest_sites(available, hosted, size) for available, size in _sums(settings, hosted, n_blocks)))
    require(
        fewest >= choice.min_sites,
        f"{len(hosted)} sites, of which a round may bring only {fewest} together in a sum of one block, and "
        f"aggregation='secure' needs {choice.min_sites} (min_sites): with fewer, the sum shows too much of what each "
        "contributed; let more sites take part, raise cohort, or choose a block_order in which all clients of a round "
        "train one block",
    )
    most = max(len(available) if size is None else size for available, size in _sums(settings, hosted, n_blocks))
    Ring(choice.bytes_per_value).limit(most)


def _sums(settings: Settings, hosted: Hosted, n_blocks: int) -> Iterator[tuple[Collection[int], int | None]]:
    """Every set of clients that may be added up in a round: of these, all (None) or any so many."""
    everybody = [client for clients in hosted for client in clients]
    for available in settings.availability or (everybody,):
        size = settings.cohort if settings.cohort is not None and settings.cohort < len(available) else None
        if settings.block_order != "cyclic" or n_blocks == 1:
            yield available, size
        elif size is None:
            for remainder in range(n_blocks):
                together = [client for client in available if client % n_blocks == remainder]
                if together:
                    yield together, None
        else:  # a cohort may have any one client alone in a block
            yield available, 1


def _fewest_sites(available: Collection[int], hosted: Hosted, size: int | None) -> int:
    """Sites that ``size`` of these clients come from at least; None for all of them."""
    at_sites = sorted((len(set(clients) & set(available)) for clients in hosted), reverse=True)
    left = sum(at_sites) if size is None else size
    for n_sites, clients in enumerate(at_sites, start=1):
        left -= clients
        if left <= 0 and (size is not None or n_sites == sum(map(bool, at_sites))):
            return n_sites
    return 0


def refuse_telling_callbacks(settings: Settings, trainer: Trainer, *, is_fit: bool) -> None:
    """Refuse callbacks that tell other sites what one client has done, in a fit or an evaluation.

    Raises:
        ConfigurationError: names the callback, and what to do.
    """
    if not isinstance(settings.aggregation, SecureAggregation):
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        require(
            not isinstance(callback, ClientSight) or callback.shared == "nothing",
            f"ClientSight(shared={getattr(callback, 'shared', '')!r}) {_WITH} is not supported: figures of clients "
            "leave their sites; use shared='nothing', on the command line --shared nothing",
        )
        require(
            not isinstance(callback, Timeline) or callback.own_only,
            f"Timeline() {_WITH} is not supported: it gathers every client's samples; use "
            "Timeline(own_only=True), on the command line --shared nothing",
        )
        if is_fit and isinstance(callback, ModelCheckpoint):
            _refuse_monitoring(callback)


def refuse_remade_loaders(settings: Settings, trainer: Trainer) -> None:
    """Refuse loaders that are made anew while rounds are under way: what they yield is looked at before the first.

    Raises:
        ConfigurationError: the trainer would make them.
    """
    values: Any = trainer
    require(
        not isinstance(settings.aggregation, SecureAggregation) or not values.reload_dataloaders_every_n_epochs,
        f"Trainer(reload_dataloaders_every_n_epochs=...) {_WITH} is not supported: a resumed run, which must repeat "
        "its rounds with the same data, could not compare those of later epochs; leave it out",
    )


def _refuse_monitoring(callback: ModelCheckpoint) -> None:
    """All sites keep the same checkpoints, under the same names, and none knows the figures of another."""
    require(
        callback.monitor is None,
        f"ModelCheckpoint(monitor={callback.monitor!r}) {_WITH} is not supported: figures stay at their sites, and the "
        "sites would not keep the same checkpoints; use every_n_train_steps or every_n_epochs, with save_top_k=-1 or "
        "save_last=True",
    )
    named = {*re.findall(r"\{([^:}]*)", f"{callback.filename or ''} {callback.CHECKPOINT_NAME_LAST}")}
    named -= {"epoch", "step"}
    require(
        not named,
        f"ModelCheckpoint(filename={callback.filename!r}) {_WITH} is not supported: the name of the file would tell "
        f"the others this site's {', '.join(sorted(named))}; use {{epoch}} and {{step}} alone",
    )
