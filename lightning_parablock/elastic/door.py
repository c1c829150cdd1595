"""How a site comes into a run under way: it knocks at a member's desk, and the member lets it in as a guest."""

from __future__ import annotations

from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.callers import refuse_other_site
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.elastic.view import Entry
from lightning_parablock.errors import ConfigurationError, RefusedError, UnreachableError
from lightning_parablock.regroup.candidates import free_client
from lightning_parablock.site_kit.version_fact import ADVICE
from lightning_parablock.system.reading import reading

_DIFFERENT = "different"
_NOT_YET = "not yet"
_UNSET = "not set"
_SAME = "use the same versions and the same run.yaml as the other sites"
_ANSWER_S = 10.0
_AGREED_S = 60.0


class Door:
    """Both sides of the door of one site.

    Args:
        seat: State of this site.

    Attributes:
        founders: Client ids of the founders, once this site has been let in as a guest.
        awaited: What this site, which has not been let in yet, waits for at a run under way; empty where there is none.
        is_setting_up: Whether the founders have yet to begin the first round.
    """

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._agreed: bytes | None = None
        self._reserved: dict[str, int] = {}
        self.founders: tuple[int, ...] = ()
        self.awaited, self.is_setting_up = "", False

    def knock(self) -> Entry | None:
        """Ask a member of the run, if there is one, to let this site in as a guest."""
        seat = self._seat
        running = [one for one in seat.candidates if one.opened >= 0 and one.site != seat.options.site]
        self.awaited, self.is_setting_up = "", False
        if not running:
            return None
        newest = max(one.opened for one in running)
        hub = min((one for one in running if one.opened == newest), key=lambda one: one.client)
        said = {"site": seat.options.site, "facts": dict(seat.facts)}
        try:
            reply = call(hub.desk, "enter", said, limit_s=_ANSWER_S, caller=seat.identity, look=seat.check)
            run, client, sites, first_round = _let_in(reply, hub.site)
            caller = Identity(run, seat.options.site, seat.incarnation)
            agreed = call(hub.desk, "agreed", {}, limit_s=_AGREED_S, caller=caller, look=seat.check)
        except UnreachableError as error:
            self.awaited = f"site {hub.site} at {error}; open its ports to this site"
            return None
        except RefusedError as error:
            if error.kind == _DIFFERENT:
                differences = error.details.get("differences", error)
                raise ConfigurationError(f"site {seat.options.site} cannot join the run: {differences}") from None
            self.is_setting_up = error.kind == _NOT_YET
            names = ", ".join(sorted(one.site for one in running))
            self.awaited = (
                f"the run of {names} to begin its first round: its sites are still setting up, and this one joins then"
                if self.is_setting_up
                else f"site {hub.site} to let this site in: {error}"
            )
            return None
        with seat.changed:
            seat.run, seat.asked_client = run, client
        self.founders = tuple(sites)
        with_own = {**sites, seat.client: seat.options.site}
        return Entry(False, seat.client, with_own, first_round, bytes(agreed.body))

    def open(self, agreed: bytes) -> None:
        """Let guests in from now on, and tell them what the founders have agreed on."""
        with self._seat.changed:
            self._agreed = agreed
            self._seat.changed.notify_all()

    def answer_enter(self, call: Call) -> Reply:
        """Desk: a site asks for a client id."""
        seat = self._seat
        with call.reading():
            site = str(call.said["site"])
            facts = {str(name): str(value) for name, value in call.said["facts"].items()}
        refuse_other_site(call, site)
        with seat.changed:
            if not seat.in_rounds or self._agreed is None:
                raise RefusedError("the founders have not begun the first round yet", _NOT_YET)
            names = {*facts, *seat.facts}
            other = [n for n in sorted(names) if facts.get(n) != seat.facts.get(n)]
            if other:
                what = [f"{n} is {facts.get(n, _UNSET)} here and {seat.facts.get(n, _UNSET)} in the run" for n in other]
                text = "; ".join([*what, *sorted({ADVICE.get(name, _SAME) for name in other})])
                raise RefusedError(f"site {site} differs from the run: {text}", _DIFFERENT, {"differences": text})
            own = seat.log.client_of(site)
            if own is None:
                own = self._reserved.setdefault(site, free_client(seat.log, self._taken_by_others(site)))
            founders = seat.log.records[0]
            sites = [[client, seat.log.newest.sites[client]] for client in founders.members]
        return Reply({"run": seat.run, "client": own, "sites": sites, "first_round": founders.first_round})

    def _taken_by_others(self, site: str) -> set[int]:
        """Ids that guests have, also those that another member has let in; the caller holds the lock."""
        guests = {one.client for one in self._seat.candidates if one.client >= 0 and one.site != site}
        return guests | set(self._reserved.values())

    def answer_agreed(self, call: Call) -> Reply:
        """Desk: what the founders have agreed on."""
        return Reply({}, self._agreed or b"")


def _let_in(reply: Reply, site: str) -> tuple[str, int, dict[int, str], int]:
    """The run, this site's client id in it, the founders' sites, and the round with which they began."""
    with reading(f"the answer of site {site!r} to a guest"):
        sites = {int(client): str(name) for client, name in reply.said["sites"]}
        return str(reply.said["run"]), int(reply.said["client"]), sites, int(reply.said["first_round"])
