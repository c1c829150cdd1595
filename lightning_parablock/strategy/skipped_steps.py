"""Steps that a client skips, and what cannot work because it needs every client in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.collectives import Gathering
from lightning_parablock.lightning_private.facts import logged_results
from lightning_parablock.settings import Settings

NEW_SITES = "sites come and go, and a new one may have fewer batches"
"""Why steps differ in an elastic run, in words."""


@dataclass(frozen=True)
class SkippedSteps:
    """Why clients skip steps; the same on all ranks.

    Attributes:
        out_of_data: Some clients have fewer batches than others, and the others continue.
        own_steps: Some clients train in a part of a round's steps only.
        sits_out: A rank may have no client in a round, or in a whole epoch.
        idle_turns: Ranks host different numbers of clients.
        new_sites: Sites come and go, and one that comes may have fewer batches than the others.
    """

    out_of_data: bool = False
    own_steps: bool = False
    sits_out: bool = False
    idle_turns: bool = False
    new_sites: bool = False

    @classmethod
    def agreed(
        cls, ranks: Gathering, settings: Settings, clients_by_rank: Sequence[Sequence[int]], *, out_of_data: bool
    ) -> SkippedSteps:
        """Collect the reasons from all ranks; collective, since a rank's own limits are known to that rank alone.

        Args:
            ranks: The ranks of the run.
            settings: The run's settings on this rank.
            clients_by_rank: The clients that each rank hosts.
            out_of_data: See the attribute.
        """
        has_limits = settings.own_local_steps is not None or settings.own_local_s is not None
        return cls(
            out_of_data=out_of_data and not settings.is_elastic,
            own_steps=any(ranks.gather_objects(has_limits)),
            sits_out=settings.draws_cohorts and len(clients_by_rank) > 1,
            idle_turns=len(set(map(len, clients_by_rank))) > 1,
            new_sites=settings.is_elastic,
        )

    @property
    def in_steps(self) -> bool:
        """Whether there are steps in which some clients train and others do not."""
        return self.out_of_data or self.own_steps or self.sits_out or self.idle_turns or self.new_sites

    @property
    def why(self) -> str:
        """The reasons in words, for messages."""
        said = {
            "different numbers of batches": self.out_of_data,
            "own_local_steps or own_local_s": self.own_steps,
            "cohort or availability": self.sits_out,
            "different numbers of clients per rank": self.idle_turns,
            NEW_SITES: self.new_sites,
        }
        return ", ".join(reason for reason, holds in said.items() if holds)


def may_miss_epochs(
    skipped: SkippedSteps, local_steps: int, clients_by_rank: Sequence[Sequence[int]], epoch_steps: float
) -> bool:
    """Whether a whole epoch may pass in which a rank trains no client.

    A client always trains in the first step of its part of a round, so that own limits let it skip all but one of the
    local steps one after the other; a rank with fewer clients than others skips the whole turns that it lacks.

    Args:
        skipped: Why clients skip steps.
        local_steps: Optimizer steps of a turn.
        clients_by_rank: The clients that each rank hosts.
        epoch_steps: Optimizer steps of an epoch at the client with the fewest, a part of one included; 0 where that is
            not known.
    """
    turns = [len(clients) for clients in clients_by_rank]
    longest_pause_steps = local_steps * (max(turns) - min(turns)) + (local_steps - 1 if skipped.own_steps else 0)
    return skipped.sits_out or (longest_pause_steps > 0 and epoch_steps <= longest_pause_steps)


def refuse_meeting_logs(trainer: Trainer, skipped: SkippedSteps, *, misses_epochs: bool) -> None:
    """Refuse epoch metrics of training_step that all ranks reduce together, where a rank may not have logged them.

    Args:
        trainer: The trainer, behind a step of its module.
        skipped: Why clients skip steps.
        misses_epochs: See :func:`may_miss_epochs`.

    Raises:
        ConfigurationError: names the first such metric.
    """
    if not misses_epochs:
        return
    for item in logged_results(trainer):
        meets = item.meta.sync.should if item.is_tensor else True  # a torchmetrics object meets when it is computed
        if item.meta.on_epoch and meets:
            raise ConfigurationError(
                f"training_step logs {item.meta.name!r} over the epoch and all clients, and with {skipped.why} a rank "
                "may train no client in a whole epoch: others would wait for it; log it without sync_dist, or in "
                "validation" + ("" if skipped.sits_out else ", or make epochs longer than a round")
            )


def refuse_scaler(scale: float, skipped: SkippedSteps) -> None:
    """Refuse a gradient scaler where there are steps without any gradient.

    Raises:
        ConfigurationError: precision 16-mixed on a GPU, and clients skip steps.
    """
    if scale != 1.0 and skipped.in_steps:
        raise ConfigurationError(
            f"precision '16-mixed' scales gradients and needs some in every step, and clients skip steps "
            f"({skipped.why}); use 'bf16-mixed' or '32-true'"
        )
