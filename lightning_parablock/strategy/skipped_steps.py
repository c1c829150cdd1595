"""Steps that a client passes by, and what cannot work where all clients would have to be there at each."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch import Trainer

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.lightning_private.facts import logged_results


@dataclass(frozen=True)
class Idling:
    """Why clients pass steps by, the same on all ranks.

    Attributes:
        out_of_data: Some have fewer batches than others, and the others go on.
        own_steps: Some train on a part of a round's steps.
        sits_out: Ranks may have no client in a round, or in any of an epoch.
        idle_turns: Ranks have different numbers of clients.
    """

    out_of_data: bool = False
    own_steps: bool = False
    sits_out: bool = False
    idle_turns: bool = False

    @property
    def in_steps(self) -> bool:
        """Whether there is a step in which some train and others do not."""
        return self.out_of_data or self.own_steps or self.sits_out or self.idle_turns

    @property
    def why(self) -> str:
        """In words."""
        said = {
            "different numbers of batches": self.out_of_data,
            "own_local_steps or own_local_s": self.own_steps,
            "cohort or availability": self.sits_out,
            "different numbers of clients a rank": self.idle_turns,
        }
        return ", ".join(reason for reason, holds in said.items() if holds)


def refuse_meeting_logs(trainer: Trainer, idling: Idling) -> None:
    """Refuse what training_step has logged for the end of an epoch, where a rank may not have logged it at all.

    Raises:
        ConfigurationError: names the first such metric.
    """
    if not idling.sits_out:
        return
    for item in logged_results(trainer):
        meets = item.meta.sync.should if item.is_tensor else True  # a torchmetrics object meets when it is computed
        if item.meta.on_epoch and meets:
            raise ConfigurationError(
                f"training_step logs {item.meta.name!r} over the epoch and all clients, and with {idling.why} a rank "
                "may have no client in an epoch: others would wait for it; log it without sync_dist, or in validation"
            )


def refuse_scaler(scale: float, idling: Idling) -> None:
    """Refuse a gradient scaler where there are steps without any gradient.

    Raises:
        ConfigurationError: precision 16-mixed on a GPU, and clients pass steps by.
    """
    if scale != 1.0 and idling.in_steps:
        raise ConfigurationError(
            f"precision '16-mixed' scales gradients and needs some in every step, and clients pass steps by "
            f"({idling.why}); use 'bf16-mixed' or '32-true'"
        )
