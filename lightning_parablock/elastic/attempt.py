"""One attempt at a regroup, driven by its coordinator: reports, decision, transfers, connections, opening.

Each step is a call to the desks of all participants at once. Where one of them fails the attempt is over: what has been
sealed stays sealed, and the next attempt has a greater number.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import Reply
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import MembershipError, ParaBlockError, RefusedError, UnreachableError
from lightning_parablock.regroup.candidates import next_generation
from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.report import Decision, Report
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.system.reading import reading

log = logging.getLogger(__name__)

_ANSWER_S = 10.0
"""Seconds for a participant to answer what it can answer at once."""
_PAUSE_S = 0.5
_GUESTS_SHARE = 1 / 4
"""Of ``rejoin_timeout_s``: the members are sealed while a guest takes what it lacks, and wait no longer than this."""


class AbandonedError(MembershipError):
    """A participant was lost during the attempt."""


class Attempt:
    """One attempt.

    Args:
        seat: State of the coordinator's site.
        participants: Processes that take part: members that stay or leave, and guests that are ready.
        is_founding: Whether no site holds W yet.

    Attributes:
        participants: As given.
        has_opened: Whether all of them have opened the generation.
        taking: Guests that have not taken yet what they lack, and without which the members can continue.
        slow: Those of them for which the members wait no longer.
    """

    def __init__(self, seat: Seat, participants: Sequence[Candidate], *, is_founding: bool) -> None:
        self._seat, self.participants, self._is_founding = seat, list(participants), is_founding
        self.has_opened, self._failure = False, ""
        self._n_blocks = seat.n_blocks
        self._lost: set[str] = set()
        self.slow: list[Candidate] = []
        self.taking = set() if is_founding else _guests(self.participants, seat)
        self._listed = {one.site: one.incarnation for one in seat.candidates}
        self._thread = threading.Thread(target=self._run, name="parablock-regroup", daemon=True)
        self.generation = next_generation([seat.membership.sealed, *(one.sealed for one in seat.candidates)])

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, limit_s: float) -> None:
        """Wait for its end."""
        self._thread.join(max(0.0, limit_s))

    def is_alive(self) -> bool:
        """Whether it is still under way."""
        return self._thread.is_alive()

    def look(self, candidates: Iterable[Candidate]) -> None:
        """Compare with the arbiter's newest list: without one of the participants the attempt cannot succeed."""
        alive = {one.incarnation for one in candidates}
        self._lost |= {one.site for one in self.participants if one.incarnation not in alive}

    def _check(self) -> None:
        self._seat.check()
        if self._lost:
            raise AbandonedError(f"site {', '.join(sorted(self._lost))} was lost")
        if self._failure:
            raise AbandonedError(self._failure)

    def _run(self) -> None:
        names = ", ".join(one.site for one in self.participants)
        log.info("parablock: generation %d begins with %s", self.generation, names)
        try:
            self._carry_out()
        except ParaBlockError as error:
            self._seat.problem = str(error)
            log.warning("parablock: generation %d with %s did not open: %s", self.generation, names, error)
        except Exception:
            log.exception("parablock: generation %d with %s did not open", self.generation, names)

    def _carry_out(self) -> None:
        generation = self.generation
        said = {"generation": generation}
        answers = self._ask_all("prepare", said)
        reports = [_report(one, reply) for one, reply in zip(self.participants, answers, strict=True)]
        if self._is_founding and any(report.opened is not None for report in reports):
            raise AbandonedError("the run has been founded by others meanwhile")
        decision = self._decide(reports)
        run = self._seat.run or uuid.uuid4().hex
        incarnations = self._incarnations(decision)
        decided = {**said, "decision": decision.to_json(), "run": run, "incarnations": incarnations}
        self._ask_all("decision", decided)
        store = {**said, "store": self._seat.store_address}
        members = {decision.record.sites[client] for client in decision.record.members}
        self._ask_all("connect", store, [one for one in self.participants if one.site in members])
        # One that is refused has acknowledged nothing, and would answer that it cannot open: it ends by itself.
        self._ask_all("open", said, [one for one in self.participants if one.site not in decision.refused])
        self.has_opened = True

    def _decide(self, reports: Sequence[Report]) -> Decision:
        options = self._seat.options
        rules = Rules(
            topology=options.topology,
            min_clients=options.min_clients,
            n_blocks=self._n_blocks,
            has_server_state=options.has_server_state,
            drops=options.drops,
            roster=self._seat.roster,
            most_members=options.most_members,
        )
        return decide(self.generation, reports, rules, self._why_gone())

    def _why_gone(self) -> dict[int, str]:
        if not self._seat.log.records:
            return {}
        record, here = self._seat.log.newest, {one.site for one in self.participants}
        gone = [client for client in record.members if record.sites[client] not in here]
        return {client: self._why(record.sites[client], self._seat.incarnations.get(client)) for client in gone}

    def _why(self, site: str, incarnation: str | None) -> str:
        """Why a member takes no part, whose process is known."""
        listed = self._listed.get(site)
        if listed is None:
            return f"lost: its process has ended, or no sign of life for {self._seat.options.silence_s:g} s"
        if listed == incarnation:
            return "lost: not all of the other sites reach it, although it is alive"
        return "lost: its process was started again"

    def _incarnations(self, decision: Decision) -> dict[str, str]:
        by_site = {one.site: one.incarnation for one in self.participants}
        return {str(client): by_site[decision.record.sites[client]] for client in decision.record.members}

    def _ask_all(self, name: str, said: Mapping[str, Any], whom: Sequence[Candidate] | None = None) -> list[Reply]:
        """Call all participants at once; the first failure ends the attempt."""
        whom = self.participants if whom is None else whom
        with ThreadPoolExecutor(max(1, len(whom)), "parablock-regroup") as pool:
            return list(pool.map(partial(self._ask, name, said), whom))

    def _ask(self, name: str, said: Mapping[str, Any], one: Candidate) -> Reply:
        """Call until the step is done: a desk lets no caller wait for long, and transfers may take long."""
        look = self._check
        if name == "decision" and one in self.taking:
            limit_s = max(_ANSWER_S, _GUESTS_SHARE * self._seat.options.rejoin_timeout_s)
            look = partial(self._check_guest, one, LimitedWait(limit_s, reports=LATE))
        try:
            while True:
                reply = self._call(one.desk, name, said, look)
                if reply is not None and reply.said.get("is_done", True):
                    if name == "decision":
                        self.taking.discard(one)
                    return reply
                look()
        except ParaBlockError as error:
            named = self._named(error, one)
            if name != "open":  # members that can open do; the others take it over with the next decision
                self._failure = self._failure or str(named)
            raise named from None

    def _call(self, desk: str, name: str, said: Mapping[str, Any], look: Callable[[], None]) -> Reply | None:
        """Call once; None where a founder has not heard that it may open, and has to be asked again."""
        try:
            return call(desk, name, said, limit_s=_ANSWER_S, caller=self._seat.identity, look=look)
        except UnreachableError:
            # Members take an opening over with the next attempt. Before the first round there is none, and all would
            # wait for this founder until it gives up.
            if name != "open" or not self._is_founding:
                raise
        self._check()
        time.sleep(_PAUSE_S)
        return None

    def _check_guest(self, one: Candidate, wait: LimitedWait) -> None:
        self._check()
        if wait.is_over:
            self.slow = self.slow or sorted(self.taking, key=lambda guest: guest.site)
            names = ", ".join(guest.site for guest in self.slow)
            raise AbandonedError(
                f"not all that a guest lacks has come to site {names} within {wait.limit_s:g} s, and the members wait "
                "no longer; raise rejoin_timeout_s, of which this is a quarter, if its link needs longer"
            )
        wait.report(lambda: f"site {one.site} to take what it lacks of generation {self.generation}")

    def _named(self, error: ParaBlockError, one: Candidate) -> ParaBlockError:
        """The same error, with the site whose desk has the address in it, and what to do."""
        if isinstance(error, UnreachableError):
            advice = f"if it runs, open its ports to site {self._seat.options.site}; it is tried again"
            return UnreachableError(f"site {one.site} at {error}; {advice}", error.kind)
        if isinstance(error, RefusedError):
            return RefusedError(f"site {one.site}: {error}", error.kind, error.details)
        return error


def _guests(participants: Sequence[Candidate], seat: Seat) -> set[Candidate]:
    """Participants without which the members could continue; none where these would be too few."""
    members = set(seat.incarnations.values())
    staying = [one for one in participants if one.incarnation in members and not one.is_leaving]
    is_enough = len(staying) >= seat.options.min_clients
    return {one for one in participants if one.incarnation not in members} if is_enough else set()


def _report(one: Candidate, reply: Reply) -> Report:
    with reading(f"the report of site {one.site!r}"):
        return Report.from_json(reply.said["report"])
