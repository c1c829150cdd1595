"""What cannot work while sites come and go: refused by name before a site enters a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_parablock.checks import require
from lightning_parablock.settings import Settings
from lightning_parablock.settings.record import INSTEAD_OF_AUTO

_WITH = "with elastic membership (lighthouse)"


def refuse_elastic_options(
    settings: Settings, *, site: str | None, rendezvous: str | None, backend: str | None, start_method: str
) -> None:
    """Refuse options that cannot work together with a membership that changes.

    Args:
        settings: The run's settings; with a fixed membership nothing is refused.
        site: Name of this process's site.
        rendezvous: Where sites of a fixed membership meet.
        backend: "gloo", "nccl", or None for the device's own.
        start_method: How processes would be started.

    Raises:
        ConfigurationError: names the option, and what to do.
    """
    if not settings.is_elastic:
        return
    require(site is not None, f"lighthouse={settings.lighthouse!r} needs site: the name by which the others know it")
    require(
        rendezvous is None,
        f"rendezvous={rendezvous!r} is for a fixed membership and lighthouse={settings.lighthouse!r} for one that "
        "changes; keep one of them",
    )
    require(backend != "nccl", f"process_group_backend='nccl' has not been run {_WITH}; use 'gloo'")
    require(
        start_method == "popen",
        f"start_method={start_method!r} {_WITH} is not supported: each site is one process, which the user starts, and "
        "a function in another one could neither continue from a checkpoint nor run its command again; leave it out",
    )
    for name in ("clients", "cohort"):
        value = getattr(settings, name)
        require(value is None, f"{name}={value} {_WITH} is not supported: each site hosts one client, in every round")
    require(
        not settings.availability, f"availability {_WITH} is not supported: the lighthouse says which sites are there"
    )
    require(
        settings.block_order != "importance",
        f"block_order='importance' {_WITH} is not supported: its norms go back when exchanges are redone",
    )
    require(
        settings.buffers == "local",
        f"buffers={settings.buffers!r} {_WITH} is not supported: sites that come and go have no common mean",
    )
    for name, instead in INSTEAD_OF_AUTO.items():
        require(name not in settings.pending, f"{name}='auto' {_WITH} is not supported yet; {instead}")


def refuse_elastic_trainer(trainer: Trainer) -> None:
    """Refuse options of the trainer that would let sites meet where a newcomer does not.

    Raises:
        ConfigurationError: names the option, and what to do.
    """
    values: Any = trainer
    require(
        not values.reload_dataloaders_every_n_epochs,
        f"Trainer(reload_dataloaders_every_n_epochs=...) {_WITH} is not supported: a site that joins has made its "
        "loaders at another epoch than the others; leave it out",
    )
    scheduler = next((one for one in values.callbacks if isinstance(one, GradientAccumulationScheduler)), None)
    require(
        scheduler is None or len(scheduler.scheduling) == 1,
        f"GradientAccumulationScheduler {_WITH} is not supported: a site that joins within an epoch would not know how "
        "many batches make a step; use Trainer(accumulate_grad_batches=...) with one number",
    )
