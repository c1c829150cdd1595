"""A site of an elastic run: enters it, founds it or joins it, stays in it while others come and go, and leaves it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.elastic.answers import Answers
from lightning_parablock.elastic.arbiter import Arbiter
from lightning_parablock.elastic.fetching import Fetcher
from lightning_parablock.elastic.gathers import Gathered, Gathers
from lightning_parablock.elastic.journal import FINISHED, LEFT, Journal
from lightning_parablock.elastic.reach import Reach
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.elastic.seat import Seat, SiteOptions
from lightning_parablock.elastic.stores import host_store
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.elastic.view import Admission, Entry, HeldCheckpoint
from lightning_parablock.elastic.watcher import Watcher
from lightning_parablock.errors import (
    ConfigurationError,
    MembershipError,
    PeerTimeoutError,
    RefusedError,
    UnreachableError,
)
from lightning_parablock.regroup.candidates import free_client
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.system.limited_wait import LATE, SOON, LimitedWait

log = logging.getLogger(__name__)

_PAUSE_S = 0.1
_ASK_S = 2.0
_LEAVE_S = 10.0
_STATES_KEPT = 3
_DIFFERENT = "different"
_NOT_YET = "not yet"


class Site:
    """This process' part in an elastic run.

    Args:
        options: How it takes part.
        arbiter: Says who is alive.
        host: Address at which the other sites reach this one.
        ports: Range of ports for the desk; None for any.
        record: Where the site notes the run that it takes part in; None for nowhere.
    """

    def __init__(
        self,
        options: SiteOptions,
        arbiter: Arbiter,
        host: str,
        ports: PortRange | None = None,
        record: RunRecord | None = None,
    ) -> None:
        self._record = record or RunRecord()
        self._desk = Desk(host, ports=ports, check=self._refuse_strangers)
        self.store = host_store()
        self.journal = Journal(options.site)
        self._seat = Seat(options, self._desk.address, f"{host}:{self.store.port}")
        self.gathers = Gathers(self._seat, options.rejoin_timeout_s)
        self._answers = Answers(self._seat, self._note_opening)
        self._watcher = Watcher(self._seat, arbiter, self._newest_round)
        self._reserved: dict[str, int] = {}
        self._agreed: bytes | None = None
        self._starts: dict[int, bytes] = {}
        self._round = -1
        self._founders: tuple[int, ...] = ()
        self._fetcher: Fetcher | None = None
        self._rounds: ElasticTransport | None = None
        self._cleanup = ExitStack()
        self._answers.register(self._desk)
        for name, handler in {
            "gather": self.gathers.answer_gather,
            "kept": self.gathers.answer_kept,
            "agreed": self._answer_agreed,
            "trainer": self._answer_trainer,
            "reach": Reach(self._seat).answer,
        }.items():
            self._desk.answer(name, handler)
        self._desk.answer("enter", self._answer_enter, for_strangers=True)
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
            return tuple(sorted({*self._founders, seat.client}))
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
        seat.facts, seat.checkpoint_round = dict(facts), -1 if checkpoint is None else checkpoint.round
        seat.was_member = bool(self._record.read())
        self._watcher.start()
        wait = LimitedWait(seat.options.rejoin_timeout_s, reports=SOON)
        while True:
            seat.check()
            if seat.membership.generation >= 0:
                record = seat.log.newest
                return Entry(True, seat.client, dict(record.sites), record.first_round)
            entry = self._enter_running()
            if entry is not None:
                return entry
            if wait.is_over:
                raise PeerTimeoutError(f"waited for {self._awaited()}: in vain for rejoin_timeout_s={wait.limit_s:g} s")
            wait.report(self._awaited)
            time.sleep(_PAUSE_S)

    def _awaited(self) -> str:
        seat = self._seat
        if self._watcher.arbiter_away_s:
            return (
                f"the lighthouse at {seat.options.lighthouse}, which does not answer: start it with "
                f"`lightning-parablock lighthouse --port {seat.options.lighthouse.rpartition(':')[2]}`, and let this "
                "site reach it by TCP"
            )
        here = sorted(one.site for one in seat.candidates)
        problem = f"; {seat.problem}" if seat.problem else ""
        if seat.was_member and seat.checkpoint_round < 0:
            problem += f"; this site has started run {self._record.read()[:8]} before and waits for its members: "
            problem += self._record.advice
        n, least = len(here), seat.options.min_clients
        return f"other sites: {n} of min_clients={least} are here ({', '.join(here)}); start the others{problem}"

    def _enter_running(self) -> Entry | None:
        """Ask a member of the run, if there is one, to let this site in as a guest."""
        seat = self._seat
        running = [one for one in seat.candidates if one.opened >= 0 and one.site != seat.options.site]
        if not running:
            return None
        newest = max(one.opened for one in running)
        hub = min((one for one in running if one.opened == newest), key=lambda one: one.client)
        said = {"site": seat.options.site, "facts": dict(seat.facts)}
        try:
            reply = call(hub.desk, "enter", said, limit_s=10.0, caller=seat.identity, look=seat.check)
            agreed = call(
                hub.desk,
                "agreed",
                {},
                limit_s=60.0,
                caller=Identity(str(reply.said["run"]), seat.options.site, seat.incarnation),
                look=seat.check,
            )
        except UnreachableError:
            return None
        except RefusedError as error:
            if error.kind == _DIFFERENT:
                raise ConfigurationError(f"this site cannot join the run: {error}") from error
            return None  # not yet: its founders are still setting up
        with seat.changed:
            seat.run, seat.asked_client = str(reply.said["run"]), int(reply.said["client"])
        sites = {int(client): str(name) for client, name in reply.said["sites"]}
        self._founders = tuple(sites)
        everybody = {**sites, seat.client: seat.options.site}
        return Entry(False, seat.client, everybody, int(reply.said["first_round"]), bytes(agreed.body))

    # --- the rounds ---------------------------------------------------------------------------------------------------

    def keep_agreed(self, record: bytes) -> None:
        """What the founders have agreed on, or a guest was told: for those who join later."""
        with self._seat.changed:
            self._agreed = record
            self._seat.changed.notify_all()

    def attach(self, rounds: ElasticTransport, fetcher: Fetcher) -> None:
        """The exchanges of the fit exist from now on; call before anybody is let in."""
        self._seat.n_blocks = rounds.store.n_blocks
        self._fetcher, self._rounds = fetcher, rounds
        self._answers.attach(rounds, fetcher)

    def await_admission(self) -> Admission:
        """A guest takes W ahead until it is a member, and then the state of the others' trainers where it starts.

        Raises:
            PeerTimeoutError: nobody has given it anything for ``rejoin_timeout_s``.
        """
        seat = self._seat
        assert self._fetcher is not None, "attach comes first"
        self._fetcher.follow(lambda: seat.membership.generation >= 0)
        with seat.changed:
            seat.is_ready = False
        # A regroup may have followed already: this site's first round is that of the record with which it joined.
        joined = next(record for record in reversed(seat.log.records) if seat.client in record.joiners)
        return Admission(joined.first_round, self._round_start(joined.first_round))

    def keep_round_start(self, round_index: int, state: bytes) -> None:
        """A round begins here, with this state of the trainer."""
        if self._round < 0:
            self._record.write(self._seat.run)
        with self._seat.changed:
            self._round = round_index
            self._starts[round_index] = state
            first = self._seat.log.newest.first_round
            for old in [t for t in self._starts if t <= round_index - _STATES_KEPT and t != first]:
                del self._starts[old]
            self._seat.changed.notify_all()

    def _round_start(self, round_index: int) -> bytes:
        """State of the others' trainers at the start of a round, as soon as one of them has come there."""
        seat = self._seat
        wait = LimitedWait(seat.options.rejoin_timeout_s, reports=LATE)
        while True:
            seat.check()
            for client in (c for c in seat.log.newest.members if c != seat.client):
                try:
                    reply = seat.ask(client, "trainer", {"round": round_index}, b"", _ASK_S)
                except (UnreachableError, RefusedError):
                    continue
                if reply.said["is_here"]:
                    return bytes(reply.body)
                self._refuse_ended_run(round_index, is_over=bool(reply.said["is_over"]))
            listed = {one.site for one in seat.candidates} - {seat.options.site}
            self._refuse_ended_run(round_index, is_over=not listed)
            time.sleep(_PAUSE_S)
            if wait.is_over:
                raise PeerTimeoutError(f"no member has begun round {round_index} within {wait.limit_s:g} s")
            wait.report(lambda: f"a member to begin round {round_index}, with which this site starts")

    def _refuse_ended_run(self, round_index: int, *, is_over: bool) -> None:
        if is_over:
            raise MembershipError(
                f"the run has ended while this site was joining it: round {round_index} will not begin. The finished "
                "model is at the other sites, and there is nothing left to train"
            )

    # --- the end ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """The last round has been trained: nobody who joins now could train any more."""
        self._seat.is_draining = True

    def leave(self, limit_s: float = _LEAVE_S) -> bool:
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
        """This site holds every commit: wait until all members do, so that whoever lacks one can be given it.

        Args:
            round_index: The last round.
        """
        self.gathers.gather("the end", b"", round_index)
        with self._seat.changed:
            self._seat.is_over = True
            self._seat.changed.notify_all()
        self._record.forget()
        self.journal.note_end(FINISHED, self._seat.run)
        self.gathers.await_fetched(_LEAVE_S)

    def note_trouble(self, error: Exception) -> None:
        """An exchange of the open generation has failed: if nobody is lost, connect anew."""
        generation = self._seat.membership.generation
        timer = threading.Timer(2 * self._seat.options.silence_s, self._ask_for_regroup, (generation, error))
        timer.daemon = True
        timer.start()

    def _ask_for_regroup(self, generation: int, error: Exception) -> None:
        seat = self._seat
        with seat.changed:
            member = seat.membership
            if member.generation != generation or member.is_sealed or seat.is_over or seat.error is not None:
                return
            log.warning(
                "parablock: generation %d: an exchange has failed although no member is lost (%s); the members connect "
                "anew",
                generation,
                error,
            )
            member.seal(generation + 1)
            self._answers.seal()

    def closes(self, close: Callable[[], object]) -> None:
        """Call this, too, when the site is closed."""
        self._cleanup.callback(close)

    def close(self) -> None:
        """End the threads; waits only briefly."""
        self.journal.note_failure(self._seat.error, self._seat.run)
        self._cleanup.close()
        self._watcher.close(2.0)
        self._desk.close()

    # --- answers ------------------------------------------------------------------------------------------------------

    def _newest_round(self) -> int:
        return self._round

    def _note_opening(self, decision: Decision) -> None:
        redone = () if self._rounds is None else self._rounds.reopened
        self.journal.note_opening(decision.log, self._seat.run, redone)

    def _refuse_strangers(self, caller: Identity, name: str) -> None:
        run = self._seat.run
        if run and caller.run and caller.run != run:
            raise RefusedError(
                f"site {self._seat.options.site!r} takes part in run {run[:8]}, and this call is from run "
                f"{caller.run[:8]}: give each run a lighthouse of its own",
                "stranger",
            )

    def _answer_enter(self, call: Call) -> Reply:
        seat, site = self._seat, str(call.said["site"])
        with seat.changed:
            if not seat.in_rounds or self._agreed is None:
                raise RefusedError("the founders have not begun the first round yet", _NOT_YET)
            facts = {str(name): str(value) for name, value in call.said["facts"].items()}
            names = {*facts, *seat.facts}
            other = [n for n in sorted(names) if facts.get(n) != seat.facts.get(n)]
            if other:
                differences = "; ".join(f"{n}: {facts.get(n)} here, {seat.facts.get(n)} in the run" for n in other)
                raise RefusedError(f"its settings differ from those of the run: {differences}", _DIFFERENT)
            own = seat.log.client_of(site)
            if own is None:
                own = self._reserved.setdefault(site, free_client(seat.log, self._reserved.values()))
            founders = seat.log.records[0]
            sites = [[client, seat.log.newest.sites[client]] for client in founders.members]
        return Reply({"run": seat.run, "client": own, "sites": sites, "first_round": founders.first_round})

    def _answer_agreed(self, call: Call) -> Reply:
        return Reply({}, self._agreed or b"")

    def _answer_log(self, call: Call) -> Reply:
        return Reply({"log": self._seat.log.to_json(), "run": self._seat.run})

    def _answer_trainer(self, call: Call) -> Reply:
        round_index = int(call.said["round"])
        with self._seat.changed:
            call.until(self._seat.changed, lambda: round_index in self._starts or self._seat.is_over)
            state = self._starts.get(round_index)
        said = {"is_here": state is not None, "is_over": self._seat.is_over}
        return Reply(said, state or b"")
