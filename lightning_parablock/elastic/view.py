"""What the rest of the package asks of a site with elastic membership, whichever process or test double provides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.elastic.generation_masks import MaskMaker
from lightning_parablock.elastic.journal import Journal
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.lineage import Lineage
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Transport


@dataclass(frozen=True)
class HeldCheckpoint:
    """The checkpoint from which a site would continue the run.

    Attributes:
        round: The round at whose beginning it was saved.
        log: The membership log up to then.
        lineage: Of the run that saved it.
    """

    round: int
    log: MembershipLog
    lineage: Lineage


@dataclass(frozen=True)
class Entry:
    """How a site comes into a run.

    Attributes:
        is_founder: Whether it founds the run together with others; else it is a guest until it is admitted.
        client: Its client id.
        sites: Name of each client's site: the founders', and this site's own.
        first_round: The round that begins first: 0, or the one of the checkpoint from which the founders continue. For
            a guest the one from which the founders started.
        agreed: For a guest: what the founders agreed on while they were set up, as :meth:`SiteView.keep_agreed` got it.
    """

    is_founder: bool
    client: int
    sites: Mapping[int, str]
    first_round: int = 0
    agreed: bytes = b""


@dataclass(frozen=True)
class Admission:
    """How a guest becomes a member.

    Attributes:
        round: n: the round in which its training begins.
        trainer_state: Of the donor at the start of that round, as :meth:`SiteView.keep_round_start` got it.
        is_founding: Whether all sites begin there, since the run continues from a checkpoint.
    """

    round: int
    trainer_state: bytes
    is_founding: bool = False


class SiteView(Protocol):
    """One site of a run: who is present, and payloads gathered from all of them.

    Attributes:
        journal: Its account of the openings, and of its own end.
        ancestors: Ids of the runs from which the run descends, oldest first; set before the first round.
    """

    journal: Journal
    ancestors: Lineage

    @property
    def client(self) -> int:
        """Own client id; known after :meth:`enter`."""
        ...

    @property
    def run_id(self) -> str:
        """Identifier of the run, the same at all sites; known after :meth:`enter`."""
        ...

    @property
    def log(self) -> MembershipLog:
        """The membership log as far as this site has opened it; grows during the run."""
        ...

    def enter(self, facts: Mapping[str, str], checkpoint: HeldCheckpoint | None = None) -> Entry:
        """Block until the run is founded, with this site as a founder, or found, with this site as its guest.

        Args:
            facts: Printable values that must be the same at all sites: versions, settings, options of the trainer.
            checkpoint: What this site would continue from; None for a new run. A guest's is of no use.

        Raises:
            ConfigurationError: the facts differ from those of the run; names the first that does.
            PeerError: the run was not founded, or not found, within the limit.
        """
        ...

    def present(self, round_index: int) -> tuple[int, ...]:
        """Client ids, ascending, of the members of a round that are still members.

        Until the founding round has begun, these are the founders; for a guest, the founders and itself.
        """
        ...

    def gather(self, what: str, payload: bytes, round_index: int) -> dict[int, bytes]:
        """The payload of every client that is present in the round, by client id; a collective, numbered per round.

        Args:
            what: Its name, the same at all sites, for messages and checks.
            payload: This site's.
            round_index: The round whose local steps have begun last. Collectives between two rounds (validation, the
                end of an epoch) belong to the earlier one: a site that joins at round n makes its first one after the
                first batch of round n has begun, and all sites count from there.

        Raises:
            PeerError: the membership does not come to an agreement within the limit, or this site is no member any
                more.
        """
        ...

    def keep_agreed(self, record: bytes) -> None:
        """Keep, for later guests, what the founders have agreed on while they were set up. Guests keep it, too."""
        ...

    def keep_round_start(self, round_index: int, state: bytes) -> None:
        """Keep, for joiners, where this site's trainer is at the first step of a round; the newest few are enough."""
        ...

    def open_rounds(
        self,
        flat: FlatBlocks,
        settings: Settings,
        schedule: Schedule,
        device: torch.device,
        masks: MaskMaker | None = None,
    ) -> Transport:
        """Open the exchanges of a fit: collective among founders; a guest's carry nothing before its admission.

        Args:
            flat: The model's blocks, holding the founders' common starting value W.
            settings: The run's settings.
            schedule: The run's schedule, whose cohorts are drawn from the members of each round.
            device: The model's device.
            masks: For secure sums: this site's side of all agreements on masks.
        """
        ...

    def begin_engine(self, engine: RoundEngine, round_index: int) -> None:
        """As a joiner: make a fresh engine begin with a round, with W as all members have it there."""
        ...

    def await_admission(self) -> Admission:
        """As a guest that is set up: block until this site is a member, holding all that it was given.

        Raises:
            PeerError: it was not admitted within the limit.
        """
        ...

    def drain(self) -> None:
        """This site has trained its last round: no site is admitted any more."""
        ...

    def finish(self, round_index: int) -> None:
        """This site holds every commit: wait until all members do, since one that lacks some may ask for them.

        Args:
            round_index: The last round.
        """
        ...

    def leave(self) -> bool:
        """Hand over what this site keeps, and go: SIGTERM or Ctrl-C. Takes a limited time.

        Returns:
            Whether the others have let it go.
        """
        ...

    def close(self) -> None:
        """End the threads; what is not handed over is lost."""
        ...
