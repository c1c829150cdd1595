"""What one site knows of the run, of itself and of the others, shared by its threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.elastic.arbiter import Candidate, new_incarnation
from lightning_parablock.errors import (
    MembershipError,
    ParaBlockError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.regroup.lineage import Lineage
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.member import Membership
from lightning_parablock.regroup.report import Decision


@dataclass(frozen=True)
class SiteOptions:
    """How a site takes part.

    Attributes:
        site: Its name.
        lighthouse: ``host:port`` of the run's lighthouse.
        min_clients: Fewer members than this do not continue.
        rejoin_timeout_s: Longest wait for enough sites.
        admit_every_rounds: Least number of rounds between two admissions.
        silence_s: Seconds without a sign of life at the lighthouse after which a site is lost.
        topology: "star" or "sharded".
        has_server_state: Whether servers keep state besides W.
        drops: Whether exchanges that are not kept are dropped instead of redone, as with secure sums.
        most_members: No more members than this; None for any number.
        samples: Number of training samples here.
        straggler_timeout_s: Longest wait for a member that is alive.
    """

    site: str
    lighthouse: str
    min_clients: int
    rejoin_timeout_s: float
    admit_every_rounds: int
    silence_s: float
    topology: str
    has_server_state: bool
    drops: bool = False
    most_members: int | None = None
    samples: int = 0
    straggler_timeout_s: float = 3600.0


@dataclass
class Seat:
    """The state of this site; every access to what changes holds :attr:`changed`.

    Attributes:
        options: How it takes part.
        address: Of its desk.
        store_address: Of the store that it hosts for the connections of a generation that it coordinates.
        links: Addresses of the sites of a federation, and no others are called; None for any.
        facts: What must be the same at all sites, by name.
        incarnation: Which process of the site this is; the newer of two is the greater text.
        changed: Notified whenever anything here changes.
        membership: Its part in regroups.
        run: Id of the run; empty before there is one.
        asked_client: Client id that a guest asks for.
        candidates: The arbiter's newest list, without entries of other runs and of replaced processes.
        incarnations: Process of each member of the newest generation, by client id.
        is_ready: Whether a guest may be admitted.
        is_leaving: Whether the site gives what it has and goes.
        has_left: Whether it has been let go.
        in_rounds: Whether its rounds have begun, so that others can be admitted.
        is_draining: Whether this site has trained its last round, so that no site is admitted any more.
        is_over: Whether all members have everything, so that a site that goes is no loss.
        checkpoint_round: Round with which the checkpoint begins that a founder would continue from; -1 for none.
        lineage: Of the run that saved this checkpoint; empty for none.
        noted: Lineage of the run of which the site has started a round before, and holds nothing any more.
        n_blocks: Number of blocks of the model, once it is known.
        roster: For secure sums: names of the sites that may take part, once it is known.
        next_run: Id of the run, as of the generation that is acknowledged.
        next_incarnations: The same for :attr:`incarnations`.
        problem: Why the last attempt at a regroup that this site coordinated has failed.
        opened: What led to the newest generation.
        error: What ends its part in the run.
    """

    options: SiteOptions
    address: str
    store_address: str
    links: PrivateLinks | None = None
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    incarnation: str = field(default_factory=new_incarnation)
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))
    run: str = ""
    asked_client: int | None = None
    candidates: tuple[Candidate, ...] = ()
    incarnations: dict[int, str] = field(default_factory=dict[int, str])
    is_ready: bool = False
    is_leaving: bool = False
    has_left: bool = False
    in_rounds: bool = False
    is_draining: bool = False
    is_over: bool = False
    checkpoint_round: int = -1
    lineage: Lineage = ()
    noted: Lineage = ()
    n_blocks: int = 1
    roster: frozenset[str] | None = None
    next_run: str = ""
    next_incarnations: dict[int, str] = field(default_factory=dict[int, str])
    opened: Decision | None = None
    problem: str = ""
    error: ParaBlockError | None = None

    def __post_init__(self) -> None:
        self.membership = Membership(self.options.site)
        self._addresses: dict[str, str] = {}

    @property
    def log(self) -> MembershipLog:
        """The log up to the generation that is open here."""
        return self.membership.log

    @property
    def is_apart(self) -> bool:
        """Whether the members are changing."""
        return self.membership.is_sealed

    @property
    def client(self) -> int:
        """Own client id; a guest's is the one that it asks for."""
        client = self.membership.client
        client = self.asked_client if client is None else client
        assert client is not None, "the site has not entered a run"
        return client

    def client_in(self, log: MembershipLog) -> int:
        """Own client id according to a log.

        Raises:
            MembershipError: the site is not in it.
        """
        client = log.client_of(self.options.site)
        if client is None:
            raise MembershipError(f"site {self.options.site!r} is not in the membership log")
        return client

    @property
    def identity(self) -> Identity:
        """Who calls."""
        return Identity(self.run, self.options.site, self.incarnation)

    def me(self) -> Candidate:
        """This site's entry in the arbiter's list."""
        with self.changed:
            member = self.membership
            client = member.client if member.client is not None else self.asked_client
            return Candidate(
                site=self.options.site,
                incarnation=self.incarnation,
                desk=self.address,
                store=self.store_address,
                run=self.run,
                client=-1 if client is None else client,
                opened=member.generation,
                sealed=member.sealed,
                is_leaving=self.is_leaving,
                is_ready=self.is_ready,
            )

    def note_list(self, candidates: tuple[Candidate, ...]) -> None:
        """Take over the arbiter's newest list."""
        with self.changed:
            self.candidates = candidates
            self._addresses |= {one.site: one.desk for one in candidates}
            self.changed.notify_all()

    def was_dropped(self, generation: int) -> bool:
        """Whether the run has continued without this site, given that another one has opened ``generation``.

        All participants of an attempt acknowledge before any of them opens, but for those that leave. So where this
        site has sealed the number and not acknowledged, the others have opened another attempt, with the same number:
        the coordinator of the one that was sealed here was lost, or this site has sealed for itself.
        """
        with self.changed:
            member, waiting = self.membership, self.membership.acknowledged
            may_open = waiting is not None and waiting.record.generation == generation
            is_other = member.generation < generation == member.sealed and not may_open
            return member.generation >= 0 and (member.was_dropped(generation) or is_other)

    def note_opened(self, decision: Decision) -> None:
        """The site has opened the generation that it had acknowledged last."""
        with self.changed:
            self.incarnations, self.run, self.opened = self.next_incarnations, self.next_run, decision
            record, client = decision.record, decision.log.client_of(self.options.site)
            if len(decision.log.records) > 1 and client in record.joiners:
                self.in_rounds = True
            self.changed.notify_all()

    def fail(self, error: ParaBlockError) -> None:
        """End this site's part in the run; the first error counts."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()

    def recognize(self, caller: Identity) -> None:
        """Raise a RefusedError where a call comes from another address than the roster gives to the caller's site."""
        if self.links is None:
            return
        try:
            self.links.check_peer(caller.site, caller.source, "a call")
        except ProtocolError as error:
            raise RefusedError(str(error), "stranger") from error

    def check_address(self, site: str, address: str, what: str) -> None:
        """Raise a ProtocolError where a peer names another address than the roster gives to a site.

        Args:
            site: Name of the site.
            address: ``host:port``.
            what: Is there; for messages.
        """
        if self.links is not None:
            self.links.check_peer_port(site, address, what)

    def check(self) -> None:
        """Raise the error that ends this site's part in the run, if there is one."""
        if self.error is not None:
            raise self.error

    def describe(self, client: int) -> str:
        """A member in words, for messages."""
        name = self.log.newest.sites.get(client) if self.log.records else None
        return f"client {client}" if name is None else f"site {name} (client {client})"

    def site_of(self, client: int) -> str:
        """Name of a client's site.

        Raises:
            MembershipError: the run has had no such client.
        """
        name = self.log.newest.sites.get(client) if self.log.records else None
        if name is None:
            raise MembershipError(f"this run has had no client {client}")
        return name

    def address_of(self, site: str) -> str:
        """Address of a site's desk, as the arbiter's list said last.

        Raises:
            UnreachableError: the list has never had the site.
        """
        with self.changed:
            address = self._addresses.get(site)
        if address is None:
            raise UnreachableError(f"the lighthouse has not named site {site!r} yet", "refused")
        return address

    def store_of(self, client: int) -> str:
        """Address of the store that a member hosts."""
        site = self.site_of(client)
        store = next((one.store for one in self.candidates if one.site == site), None)
        if store is None:
            raise UnreachableError(f"the lighthouse does not name site {site!r} any more", "refused")
        return store

    def ask(
        self,
        client: int,
        name: str,
        said: Mapping[str, object],
        body: bytes,
        limit_s: float,
        pace: Callable[[int], None] | None = None,
    ) -> Reply:
        """Call another member's desk; may be sent twice."""
        return self.call(self.address_of(self.site_of(client)), name, said, limit_s, body=body, pace=pace)

    def call(
        self,
        address: str,
        name: str,
        said: Mapping[str, object],
        limit_s: float,
        look: Callable[[], object] | None = None,
        body: bytes = b"",
        pace: Callable[[int], None] | None = None,
    ) -> Reply:
        """Call a desk; may be sent twice."""
        look = look or self.check
        return call(address, name, said, body, limit_s, caller=self.identity, repeatable=True, look=look, pace=pace)
