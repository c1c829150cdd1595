"""A site of an elastic run: enters it, founds it or joins it, stays in it while others come and go, and leaves it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.elastic.answers import Answers
from lightning_parablock.elastic.arbiter import Arbiter
from lightning_parablock.elastic.door import Door
from lightning_parablock.elastic.fetching import Fetcher
from lightning_parablock.elastic.gathers import Gathered, Gathers
from lightning_parablock.elastic.journal import FINISHED, LEFT, Journal
from lightning_parablock.elastic.reach import Reach
from lightning_parablock.elastic.round_starts import RoundStarts
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.elastic.seat import Seat, SiteOptions
from lightning_parablock.elastic.stores import host_store
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.elastic.view import Admission, Entry, HeldCheckpoint
from lightning_parablock.elastic.watcher import Watcher
from lightning_parablock.errors import (
    PeerTimeoutError,
    RefusedError,
)
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.regroup.lineage import Lineage, goes_back
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.system.limited_wait import SOON, LimitedWait

log = logging.getLogger(__name__)

_PAUSE_S = 0.1
LEAVE_S = 10.0
"""How long :meth:`Site.leave` takes at most."""


class Site:
    """This process' part in an elastic run.

    Args:
        options: How it takes part.
        arbiter: Says who is alive.
        host: Address at which the other sites reach this one.
        ports: Range of ports for the desk and the store; None for any.
        record: Where the site notes the run that it takes part in; None for nowhere.
        links: Addresses of the sites of a federation: this one listens at ``host`` alone, and speaks with no other
            addresses; None where sites may be anywhere.

    Attributes:
        ancestors: Ids of the runs from which the run descends, oldest first; empty until the founders have agreed.
    """

    def __init__(
        self,
        options: SiteOptions,
        arbiter: Arbiter,
        host: str,
        ports: PortRange | None = None,
        record: RunRecord | None = None,
        links: PrivateLinks | None = None,
    ) -> None:
        self._record = record or RunRecord()
        self._desk = Desk(host, ports=ports, check=self._refuse_strangers, recognize=self._recognize)
        self.store = host_store(host, ports, is_private=links is not None)
        self.journal = Journal(options.site)
        self.ancestors: Lineage = ()
        self._seat = Seat(options, self._desk.address, f"{host}:{self.store.port}", links)
        self.gathers = Gathers(self._seat, options.straggler_timeout_s, options.rejoin_timeout_s)
        self._answers = Answers(self._seat, self._note_opening)
        self._door = Door(self._seat)
        self._starts = RoundStarts(self._seat)
        self._watcher = Watcher(self._seat, arbiter, lambda: self._starts.newest, self._answers.seal)
        self._fetcher: Fetcher | None = None
        self._rounds: ElasticTransport | None = None
        self._cleanup, self._is_closed = ExitStack(), False
        self._answers.register(self._desk)
        for name, handler in {
            "gather": self.gathers.answer_gather,
            "kept": self.gathers.answer_kept,
            "agreed": self._door.answer_agreed,
            "trainer": self._starts.answer,
            "reach": Reach(self._seat).answer,
        }.items():
            self._desk.answer(name, handler)
        self._desk.answer("enter", self._door.answer_enter, for_strangers=True)
        self._desk.answer("log", self._answer_log, for_strangers=True)

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def seat(self) -> Seat:
        """What this site knows."""
        return self._seat

    @property
    def desk(self) -> Desk:
        """Answers the other sites."""
        return self._desk

    @property
    def client(self) -> int:
        """Own client id."""
        return self._seat.client

    @property
    def run_id(self) -> str:
        """Id of the run; empty before it is founded."""
        return self._seat.run

    @property
    def log(self) -> MembershipLog:
        """The membership log."""
        return self._seat.log

    def present(self, round_index: int) -> tuple[int, ...]:
        """Members of a round that are still members: client ids, ascending; for a guest, the founders and itself."""
        seat = self._seat
        if seat.membership.generation < 0:
            return tuple(sorted({*self._door.founders, seat.client}))
        first = seat.log.records[0].first_round
        return seat.log.present(max(round_index, first))

    def gather(self, what: str, payload: bytes, round_index: int) -> Gathered:
        """See :meth:`Gathers.gather`."""
        return self.gathers.gather(what, payload, round_index)

    def check(self) -> None:
        """Raise the error that ends this site's part in the run, if there is one."""
        self._seat.check()

    # --- entering -----------------------------------------------------------------------------------------------------

    def enter(self, facts: Mapping[str, str], checkpoint: HeldCheckpoint | None = None) -> Entry:
        """Found the run with others, or find it; waits for either.

        Args:
            facts: What must be the same at all sites, by name.
            checkpoint: What this site would continue from; None for a new run.

        Raises:
            ConfigurationError: the run has other settings; names them.
            PeerTimeoutError: too few sites came within ``rejoin_timeout_s``.
        """
        seat = self._seat
        seat.facts = dict(facts)
        if checkpoint is not None:
            seat.checkpoint_round, seat.lineage = checkpoint.round, checkpoint.lineage
        seat.noted = self._record.lineage()
        self._watcher.start()
        wait = LimitedWait(seat.options.rejoin_timeout_s, reports=SOON)
        while True:
            seat.check()
            if seat.membership.generation >= 0:
                record = seat.log.newest
                return Entry(True, seat.client, dict(record.sites), record.first_round)
            entry = self._door.knock()
            if entry is not None:
                return entry
            if self._door.is_setting_up:  # the founders' own limits bound this
                wait.renew()
            elif wait.is_over:
                raise PeerTimeoutError(
                    f"gave up after rejoin_timeout_s={wait.limit_s:g} s of waiting for {self._awaited()}"
                )
            wait.report(self._awaited)
            time.sleep(_PAUSE_S)

    def _awaited(self) -> str:
        seat, away = self._seat, self._watcher.away
        if away is not None and not away.is_away:
            return f"a list of the sites: {away}"
        if away is not None or not seat.candidates:
            host, _, port = seat.options.lighthouse.rpartition(":")
            has_not = "does not answer any more" if seat.candidates else "has not answered yet"
            return (
                f"the lighthouse at {seat.options.lighthouse}, which {has_not}: start it there with "
                f"`lightning-parablock lighthouse --port {port}`, and check `nc -vz {host.strip('[]')} {port}`"
            )
        if self._door.awaited:
            return self._door.awaited
        here = sorted(one.site for one in seat.candidates if not one.run)
        problem = f"; {seat.problem}" if seat.problem else ""
        is_older = goes_back(seat.lineage, seat.noted)
        if seat.noted and (is_older or seat.checkpoint_round < 0):
            problem += f"; this site has started run {seat.noted[-1][:8]} before and waits for its members"
            problem += f", as its checkpoint is of run {seat.lineage[-1][:8]}, which is older: " if is_older else ": "
            problem += self._record.advice
        n, least = len(here), seat.options.min_clients
        are_here = f"{n} of min_clients={least} are here ({', '.join(here)})"
        if n < least:
            return f"other sites: {are_here}; start the others{problem}"
        return f"the start of the run: {are_here}, and site {here[0]} coordinates it: see its log{problem}"

    # --- the rounds ---------------------------------------------------------------------------------------------------

    def keep_agreed(self, record: bytes) -> None:
        """Keep what the founders have agreed on, or a guest has received, for sites that join later."""
        self._door.open(record)

    def attach(self, rounds: ElasticTransport, fetcher: Fetcher) -> None:
        """The exchanges of the fit exist from now on; call before any site is let in."""
        self._seat.n_blocks = rounds.store.n_blocks
        self._fetcher, self._rounds = fetcher, rounds
        self._answers.attach(rounds, fetcher)

    def await_admission(self) -> Admission:
        """A guest takes W ahead until it is a member, and then the state of the others' trainers where it starts.

        Raises:
            PeerTimeoutError: no member has given it anything for ``rejoin_timeout_s``.
        """
        seat = self._seat
        assert self._fetcher is not None, "attach comes first"
        self._fetcher.follow(lambda: seat.membership.generation >= 0)
        with seat.changed:
            seat.is_ready = False
        # A regroup may have followed already: this site's first round is that of the record with which it joined.
        joined = next(record for record in reversed(seat.log.records) if seat.client in record.joiners)
        return Admission(joined.first_round, self._starts.of_others(joined.first_round))

    def keep_round_start(self, round_index: int, state: bytes) -> None:
        """A round begins here, with this state of the trainer."""
        if self._starts.newest < 0:
            self._record.write(self._seat.run, self.ancestors)
        self._starts.keep(round_index, state)

    # --- the end ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """The last round has been trained: a site that joins now could no longer train."""
        self._seat.is_draining = True

    def leave(self, limit_s: float = LEAVE_S) -> bool:
        """Give what this site has, and go; returns whether the others have let it go within the limit."""
        seat, deadline_s = self._seat, time.monotonic() + limit_s
        with seat.changed:
            if seat.membership.generation < 0:
                return True
            seat.is_leaving = True
            while not seat.has_left and seat.error is None and time.monotonic() < deadline_s:
                seat.changed.wait(_PAUSE_S)
        self._watcher.await_attempt(deadline_s - time.monotonic())
        self.journal.note_end(LEFT, seat.run, "" if seat.has_left else f"the others have not answered in {limit_s:g} s")
        return seat.has_left

    def finish(self, round_index: int) -> None:
        """This site holds every commit: wait until all members do, so that those that lack one can get it here.

        Args:
            round_index: The last round.
        """
        self.gathers.gather("the end", b"", round_index)
        with self._seat.changed:
            self._seat.is_over = True
            self._seat.changed.notify_all()
        self._record.forget()
        self.journal.note_end(FINISHED, self._seat.run)
        self.gathers.await_fetched(LEAVE_S)

    def note_trouble(self, error: Exception) -> None:
        """An exchange of the open generation has failed: if no site is lost, connect again."""
        self._ask_later(self._seat.membership.generation, error)

    def _ask_later(self, generation: int, error: Exception) -> None:
        timer = threading.Timer(2 * self._seat.options.silence_s, self._ask_for_regroup, (generation, error))
        timer.daemon = True
        timer.start()

    def _ask_for_regroup(self, generation: int, error: Exception) -> None:
        seat = self._seat
        with seat.changed:
            member = seat.membership
            has_ended = seat.is_over or seat.error is not None or self._is_closed
            if has_ended or member.generation != generation or member.is_sealed:
                return
            if self._watcher.away is not None:
                # No site can be replaced, and one that is cut off finds out when it is back. Nobody else asks then.
                self._ask_later(generation, error)
                return
            log.warning(
                "parablock: generation %d: an exchange has failed although no member is lost (%s); the members connect "
                "again",
                generation,
                error,
            )
            self._answers.seal()

    def closes(self, close: Callable[[], object]) -> None:
        """Call this, too, when the site is closed."""
        self._cleanup.callback(close)

    def close(self) -> None:
        """End the threads; waits only briefly."""
        self._is_closed = True
        self.journal.note_failure(self._seat.error, self._seat.run)
        self._cleanup.close()
        self._watcher.close(2.0)
        self._answers.close()
        self._desk.close()

    # --- answers ------------------------------------------------------------------------------------------------------

    def _note_opening(self, decision: Decision) -> None:
        rounds = self._rounds
        redone, dropped = ((), ()) if rounds is None else (rounds.reopened, rounds.dropped)
        self.journal.note_opening(decision.log, self._seat.run, redone, dropped)

    def _recognize(self, caller: Identity) -> None:
        self._seat.recognize(caller)

    def _refuse_strangers(self, caller: Identity, name: str) -> None:
        run, in_rounds = self._seat.run, self._seat.in_rounds
        # Who sets up the run, or founds it with a guest whose own run has ended, may not know its id yet.
        if run and caller.run != run and (caller.run or in_rounds):
            whose = f"from run {caller.run[:8]}" if caller.run else "from no run"
            raise RefusedError(
                f"site {self._seat.options.site!r} takes part in run {run[:8]}, and this call ({name!r}) is {whose}: "
                "give each run a lighthouse of its own",
                "stranger",
            )

    def _answer_log(self, call: Call) -> Reply:
        return Reply({"log": self._seat.log.to_json(), "run": self._seat.run})
