"""A site's part in a regroup, as its desk answers the coordinator: prepare, decision, connect, open.

Nothing here waits for the training thread. What takes long, transfers and connections, runs on a thread of its own, and
the coordinator asks again until it is done. A newer attempt ends the work for an older one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.elastic.fetching import Fetcher
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import DroppedError, MembershipError, RefusedError, SealedError
from lightning_parablock.regroup.report import Decision, Report, Standing
from lightning_parablock.transport.base import Transport

log = logging.getLogger(__name__)


class _Job:
    """Work for one step of one attempt, on its own thread."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # the coordinator gets it with its next question
            self.error = error

    def is_done_within(self, limit_s: float) -> bool:
        """Wait for its end; raises the error with which it ended."""
        self._thread.join(limit_s)
        if self.error is not None:
            raise self.error
        return not self._thread.is_alive()


class Answers:
    """Answers the calls of a coordinator.

    Args:
        seat: State of this site.
        on_open: Called after each opening, on a thread of the desk, with the decision.
    """

    def __init__(self, seat: Seat, on_open: Callable[[Decision], None]) -> None:
        self._seat, self._on_open = seat, on_open
        self._rounds: ElasticTransport | None = None
        self._fetcher: Fetcher | None = None
        self._jobs: dict[tuple[str, int], _Job] = {}
        self._carriers: dict[int, Transport] = {}
        self._lock = threading.Lock()

    def attach(self, rounds: ElasticTransport, fetcher: Fetcher) -> None:
        """From now on there are exchanges; until then a site has nothing to give and nothing to lose."""
        with self._seat.changed:
            self._rounds, self._fetcher = rounds, fetcher

    def seal(self) -> None:
        """Ask for a regroup: take part in no exchange until the next opening, which the others see in the list."""
        with self._seat.changed:
            member = self._seat.membership
            member.seal(1 + max(member.sealed, member.generation))
            self._drop_carriers()
            if self._rounds is not None:
                self._rounds.seal()
            self._seat.changed.notify_all()

    def register(self, desk: Desk) -> None:
        """Answer at the desk."""
        desk.answer("prepare", self.prepare)
        desk.answer("decision", self.decision)
        desk.answer("connect", self.connect)
        desk.answer("open", self.open)

    def prepare(self, call: Call) -> Reply:
        """Seal, and report what there is."""
        generation = _generation(call)
        seat = self._seat
        with seat.changed:
            if seat.error is not None:
                raise seat.error
            self._refuse_bystanders(call)
            member = seat.membership
            member.seal(generation)
            self._drop_carriers()
            opened, acknowledged, started = self._standings()
            seat.changed.notify_all()
            report = Report(
                site=seat.options.site,
                client=seat.asked_client,
                opened=opened,
                acknowledged=acknowledged,
                started=started,
                is_leaving=seat.is_leaving,
                samples=seat.options.samples,
                checkpoint_round=seat.checkpoint_round,
                lineage=seat.lineage,
                noted=seat.noted,
            )
        return Reply({"report": report.to_json()})

    def _standings(self) -> tuple[Standing | None, Standing | None, int]:
        member, rounds = self._seat.membership, self._rounds
        standing, started = (Standing(member.log), -1) if rounds is None else rounds.seal()
        waiting = member.acknowledged
        acknowledged = None
        if waiting is not None:
            staged = None if rounds is None else rounds.acknowledged_standing()
            acknowledged = replace(staged or Standing(waiting.log, waiting.record.kept), log=waiting.log)
        return (replace(standing, log=member.log) if member.generation >= 0 else None), acknowledged, started

    def decision(self, call: Call) -> Reply:
        """Pull what is missing here, and acknowledge."""
        generation = _generation(call)
        self._refuse_bystanders(call)
        with call.reading():
            decision = Decision.from_json(call.said["decision"])
            run = str(call.said["run"])
            incarnations = {int(client): str(one) for client, one in call.said["incarnations"].items()}

        def work() -> None:
            self._take(decision, run, incarnations)

        return self._do("decision", generation, work, call)

    def _take(self, decision: Decision, run: str, incarnations: dict[int, str]) -> None:
        seat, generation = self._seat, decision.record.generation
        with seat.changed:
            adopted = seat.membership.adopt(decision)
            if adopted is not None:
                seat.note_opened(adopted)
                self._make_live(adopted, None)
        site = seat.options.site
        if site in decision.refused:
            seat.fail(MembershipError(f"site {site!r} cannot join: {decision.refused[site]}"))
            return
        if decision.log.client_of(site) not in decision.record.members:
            return  # it leaves; it only gives
        if self._fetcher is not None:
            try:
                self._fetcher.stage(decision, lambda: self._require(generation))
            except DroppedError as error:  # the coordinator hears of it, too, and can do nothing about it
                seat.fail(error)
                raise
        with seat.changed:
            seat.membership.acknowledge(decision)
            seat.next_incarnations, seat.next_run = incarnations, run

    def connect(self, call: Call) -> Reply:
        """Connect with the other members of the generation that has been acknowledged."""
        generation = _generation(call)
        self._refuse_bystanders(call)
        with call.reading():
            store = str(call.said["store"])
            self._seat.check_address(call.caller.site, store, "the store")
        decision = self._acknowledged(generation)

        def work() -> None:
            if self._fetcher is not None:
                carrier = self._fetcher.connect(decision, store, lambda: self._require(generation))
                with self._seat.changed:
                    if self._seat.membership.sealed != generation:  # a newer attempt has begun meanwhile
                        carrier.close()
                    self._require(generation)
                    self._carriers[generation] = carrier

        return self._do("connect", generation, work, call)

    def open(self, call: Call) -> Reply:
        """Open the generation, or go if this site leaves."""
        seat, generation = self._seat, _generation(call)
        self._refuse_bystanders(call)
        with seat.changed:
            if seat.membership.generation == generation:
                return Reply({})  # asked again: the first answer was lost
            waiting = seat.membership.acknowledged
            is_member = waiting is not None and waiting.record.generation == generation
            if seat.is_leaving and not is_member and seat.membership.sealed == generation:
                seat.has_left = True
                seat.changed.notify_all()
                return Reply({})
            decision = seat.membership.open(generation)
            seat.note_opened(decision)
            self._make_live(decision, self._carriers.pop(generation, None))
        self._on_open(decision)
        return Reply({})

    def close(self) -> None:
        """Give up what has been connected and will not open."""
        with self._seat.changed:
            self._drop_carriers()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make_live(self, decision: Decision, carrier: Transport | None) -> None:
        """Put what is staged in place; the site cannot continue where that fails halfway. The caller holds the lock."""
        if self._rounds is None:
            return
        try:
            self._rounds.open(carrier)
        except Exception as error:
            log.exception("parablock: generation %d cannot be opened here", decision.record.generation)
            self._seat.fail(
                MembershipError(f"generation {decision.record.generation} cannot be opened here: {error!r}")
            )
            raise

    def _drop_carriers(self) -> None:
        for carrier in self._carriers.values():
            carrier.close()
        self._carriers = {}

    def _do(self, step: str, generation: int, work: Callable[[], None], call: Call) -> Reply:
        with self._lock:
            self._require(generation)
            job = self._jobs.get((step, generation))
            if job is None:
                self._jobs = {key: one for key, one in self._jobs.items() if key[1] == generation}
                job = self._jobs[step, generation] = _Job(work, f"parablock-{step}")
        return Reply({"is_done": job.is_done_within(0.8 * call.remaining_s)})

    def _refuse_bystanders(self, call: Call) -> None:
        """Refuse a coordinator that is no member, where this site knows who is: of its generation, or of the next."""
        member = self._seat.membership
        with self._seat.changed:
            if not member.log.records:
                return
            waiting = member.acknowledged
            records = [member.log.newest] if waiting is None else [member.log.newest, waiting.record]
        if not any(call.caller.site == record.sites.get(c) for record in records for c in record.members):
            raise RefusedError(
                f"site {call.caller.site[:80]!r} is no member of generation {member.generation}, and cannot change who "
                "takes part",
                "stranger",
            )

    def _require(self, generation: int) -> None:
        """Raise an error where a newer attempt has begun."""
        sealed = self._seat.membership.sealed
        if sealed != generation:
            raise SealedError(f"site {self._seat.options.site!r} has sealed generation {sealed} meanwhile", sealed)

    def _acknowledged(self, generation: int) -> Decision:
        with self._seat.changed:
            self._require(generation)
            decision = self._seat.membership.acknowledged
        if decision is None:
            raise SealedError(
                f"site {self._seat.options.site!r} has not acknowledged generation {generation}", generation
            )
        return decision


def _generation(call: Call) -> int:
    with call.reading():
        return int(call.said["generation"])
