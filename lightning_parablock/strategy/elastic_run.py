"""A fit whose sites come and go, as this site's strategy sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.elastic_checkpoints import ElasticEntry
from lightning_parablock.elastic.known_sites import KnownSites
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.elastic.run_site import RunSite, site_options
from lightning_parablock.elastic.view import Admission, Entry, HeldCheckpoint, SiteView
from lightning_parablock.meeting.addresses import INTERFACE_VARIABLE, own_address, reached_from
from lightning_parablock.meeting.devices import open_listeners
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.membership.descriptors import raise_limit
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.elastic_group import ElasticGroup
from lightning_parablock.strategy.groups import Guarded
from lightning_parablock.strategy.hosting import Hosting

_ROLE = "lighthouse"


@dataclass(eq=False)
class ElasticRun:
    """This site's part in a run.

    Attributes:
        site: This site.
        entry: How it has come into the run.
        group: The collectives.
        newest_start: The round whose local steps have begun last, and where the trainer was then; None before any has.
        beginning: The round with which a founder continues from a checkpoint, and where the trainers were then.
    """

    site: SiteView
    entry: Entry
    group: ElasticGroup
    newest_start: Admission | None = None
    beginning: Admission | None = None

    @classmethod
    def enter(
        cls, ranks: Guarded, site: SiteView, facts: Mapping[str, str], checkpoint: HeldCheckpoint | None
    ) -> ElasticRun:
        """Found the run, or find it; blocks until then. See :meth:`SiteView.enter` for errors."""
        entry = site.enter(facts, checkpoint)
        return cls(site, entry, ElasticGroup(ranks, site, entry))

    @property
    def client(self) -> int:
        """Own client id."""
        return self.site.client

    @property
    def is_newcomer(self) -> bool:
        """Whether the site was not among those that founded the run."""
        return self.client not in self.group.founders

    @property
    def hosting(self) -> Hosting:
        """One client per site that takes part."""
        return Hosting(tuple((client,) for client in self.group.clients), 1)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites that take part, in the order of their numbers."""
        return tuple(self.name_of(client) for client in self.group.clients)

    def members_at(self, round_index: int) -> tuple[int, ...]:
        """Client ids, ascending, of those from whom the cohort of a round is drawn."""
        return self.site.log.members_at(round_index)

    @property
    def client_sites(self) -> Mapping[int, str]:
        """Name of the site of each client that the run has ever had."""
        log = self.site.log
        return {**self.entry.sites, **(log.newest.sites if log.records else {})}

    def name_of(self, client: int) -> str:
        """Name of a client's site."""
        return self.client_sites.get(client, str(client))

    def describe(self, rank: int) -> str:
        """A number in words, for messages."""
        client = self.group.clients[rank]
        return f"site {self.name_of(client)} (client {client})"

    def begin_round(self, round_index: int, state: Callable[[], bytes]) -> None:
        """The first local step of a round begins.

        Args:
            round_index: The round.
            state: Returns where this site's trainer is, for sites that join at this round.
        """
        self.group.begin_round(round_index)
        self.newest_start = Admission(round_index, state())
        self.site.keep_round_start(round_index, self.newest_start.trainer_state)

    def entry_of(self, settings: Settings, blocks: Sequence[Block]) -> ElasticEntry | None:
        """What a checkpoint of this moment says of the run; None before the first round."""
        if self.newest_start is None:
            return None
        return ElasticEntry(
            round=self.newest_start.round,
            trainer_state=self.newest_start.trainer_state,
            run=self.site.run_id,
            site=self.name_of(self.client),
            log=self.site.log,
            settings=settings.fingerprint(),
            blocks=tuple((block.name, block.numel) for block in blocks),
            ancestors=self.site.ancestors,
        )


def open_site(settings: Settings, name: str, folder: Path | None, links: PrivateLinks | None = None) -> SiteView:
    """The site of this process, which has entered no run yet.

    Args:
        settings: The run's settings.
        name: Of the site.
        folder: Where it notes that it has started the run; None for nowhere.
        links: The private network of a federation, which the site then uses alone; None for the machine's own.

    Raises:
        ConfigurationError: torchft, which the arbiter needs, is not installed, the lighthouse's name is unknown, or
            there is no address or port to listen on.
    """
    assert settings.lighthouse is not None
    raise_limit()
    host = _listening_address(settings, links)
    # Runs of different lighthouses may share a folder.
    note = re.sub(r"[^\w.-]", "-", f"parablock-run-of-{name}-at-{settings.lighthouse}") + ".json"
    record = RunRecord(None if folder is None else folder / note)
    arbiter = Lighthouse(settings.lighthouse, settings.silence_s, None if links is None else KnownSites(links))
    return RunSite(site_options(settings, name), arbiter, host, settings, record, links)


def _listening_address(settings: Settings, links: PrivateLinks | None) -> str:
    """Open the listeners of the exchanges; returns their address, which is that of everything else here."""
    assert settings.lighthouse is not None
    hub = settings.lighthouse.rpartition(":")[0]
    # Every generation's exchange uses these listeners; without them gloo takes whatever the machine's name resolves to.
    if links is not None:
        links.check_here()
        address = links.own
    elif os.environ.get(INTERFACE_VARIABLE):
        address = reached_from(hub, _ROLE)
    else:
        address = own_address(hub, one_host=False, role=_ROLE)
    listeners = open_listeners(address, settings.ports)
    if links is not None:
        links.check_listeners([one.address for one in listeners])
    return listeners[0].address
