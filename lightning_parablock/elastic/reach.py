"""Who reaches whom: where attempts at a regroup fail although all participants are alive, one of them has to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import ParaBlockError, ProtocolError, RefusedError
from lightning_parablock.system.reading import reading

_PING_S = 2.0
_MOST_DESKS = 1024
"""Each is tried in a thread of its own: a wrong call must not start any number of them."""


class Reach:
    """Asks other desks whether they answer.

    Args:
        seat: State of this site.
    """

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def answer(self, call: Call) -> Reply:
        """Desk: which of some sites this one reaches."""
        with call.reading():
            desks = {str(site): str(desk) for site, desk in call.said["desks"].items()}
        if len(desks) > _MOST_DESKS:
            raise ProtocolError(f"a call names {len(desks)} desks to try; at most {_MOST_DESKS} are tried")
        for site, desk in desks.items():
            self._seat.check_address(site, desk, "the desk")
        return Reply({"reached": self.reached(desks)})

    def reached(self, desks: Mapping[str, str]) -> list[str]:
        """Those of some sites whose desks answer this one, by name."""
        with ThreadPoolExecutor(max(1, len(desks)), "parablock-reach") as pool:
            answers = list(pool.map(self.answers, desks.values()))
        return [site for site, is_there in zip(desks, answers, strict=True) if is_there]

    def answers(self, desk: str) -> bool:
        """Whether a desk answers."""
        try:
            self._seat.call(desk, "log", {}, _PING_S)
        except RefusedError:
            return True
        except ParaBlockError:
            return False
        return True

    def of_all(self, participants: Sequence[Candidate]) -> dict[str, set[str]]:
        """For each participant those that it reaches, as far as this site can ask it; itself is one of them."""
        desks = {one.site: one.desk for one in participants}
        with ThreadPoolExecutor(max(1, len(desks)), "parablock-reach") as pool:
            answers = list(pool.map(partial(self._ask, desks), participants))
        return {one.site: {one.site, *reached} for one, reached in zip(participants, answers, strict=True)}

    def _ask(self, desks: Mapping[str, str], one: Candidate) -> list[str]:
        if one.incarnation == self._seat.incarnation:
            return self.reached(desks)
        try:
            reply = self._seat.call(one.desk, "reach", {"desks": dict(desks)}, 2 * _PING_S)
            with reading(f"the answer of site {one.site!r} to 'reach'"):
                return [str(site) for site in reply.said["reached"]]
        except ParaBlockError:
            return []


def who_goes(reached: Mapping[str, set[str]], order: Sequence[str]) -> str | None:
    """The site that has to go so that the others may continue; None where all reach all.

    It is the one with the fewest mutual connections, and of several the last one.

    Args:
        reached: For each site those that it reaches, itself included.
        order: The sites; of two that are equally well connected the later one goes.
    """
    mutual = {site: {other for other in reached[site] if site in reached.get(other, ())} for site in order}
    if all(len(others | {site}) == len(order) for site, others in mutual.items()):
        return None
    fewest = min(len(others | {site}) for site, others in mutual.items())
    return next(site for site in reversed(order) if len(mutual[site] | {site}) == fewest)
