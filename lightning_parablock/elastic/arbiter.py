"""Who is alive: the list of a run's processes, as one arbiter gives it to all of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from lightning_parablock.errors import ReplacedError

_OF_TYPE = {"str": str, "int": int, "bool": bool}


def new_incarnation() -> str:
    """A name for this process among all processes of its site: when it began, and a part that no other name has.

    Of two names, the one that sorts later is that of the newer process.
    """
    return f"{time.time_ns() // 1_000_000:014d}-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Candidate:
    """What a process says of itself to all others.

    Attributes:
        site: Name of its site.
        incarnation: Which process of the site it is: see :func:`new_incarnation`.
        desk: ``host:port`` of its desk.
        store: ``host:port`` of the store that it hosts for groups of processes; empty for none.
        run: Id of its run; empty where it belongs to none yet.
        client: Its client id; -1 for none.
        opened: The newest generation that it has opened; -1 for none.
        sealed: The newest generation that it has sealed; -1 for none.
        is_leaving: Whether it gives what it has and goes.
        is_ready: Whether it is a guest that can be admitted.
        facts: Digest of settings and versions, which all processes of a run have in common.
    """

    site: str
    incarnation: str
    desk: str
    store: str = ""
    run: str = ""
    client: int = -1
    opened: int = -1
    sealed: int = -1
    is_leaving: bool = False
    is_ready: bool = False
    facts: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, said: object) -> Candidate | None:
        """What :meth:`to_json` wrote; None where it comes from another program."""
        if not isinstance(said, Mapping):
            return None
        values = {field.name: said.get(field.name) for field in fields(cls)}
        if any(type(values[field.name]) is not _OF_TYPE[str(field.type)] for field in fields(cls)):
            return None
        found: Any = values
        return cls(**found)


class Arbiter(Protocol):
    """Says who is alive, and nothing else; what follows from it is decided by the processes themselves."""

    def ask(self, me: Candidate, limit_s: float) -> tuple[Candidate, ...]:
        """The processes that are alive, with what each of them says of itself; see :func:`of_run`.

        All processes that are alive meet in this call, so a process that asks gets what the others say at about the
        same time. Not to be called from a thread that trains.

        Args:
            me: What this process says of itself from now on. It is in the list.
            limit_s: Seconds to wait for a list.

        Raises:
            ArbiterError: there was no list within the limit; when the arbiter is back, asking again is enough.
            ReplacedError: a newer process of this site is in the list.
        """
        ...

    def close(self) -> None:
        """Ask no more: the others see this process as gone once it has been silent for long enough."""
        ...


def of_run(found: Iterable[Candidate], me: Candidate) -> tuple[Candidate, ...]:
    """The processes that concern this one, by name of their site: the newest of each site, and none of other runs.

    A process that belongs to no run yet sees those of every run, and is seen by all of them.

    Raises:
        ReplacedError: a newer process of this site is among them.
    """
    newest: dict[str, Candidate] = {}
    for one in found:
        is_ours = not (me.run and one.run) or me.run == one.run
        if is_ours and (one.site not in newest or newest[one.site].incarnation < one.incarnation):
            newest[one.site] = one
    other = newest.get(me.site)
    if other is not None and other.incarnation > me.incarnation:
        raise ReplacedError(
            f"a newer process of site {me.site!r} is part of the run, with its desk at {other.desk}: the newer of "
            "the two counts, so this one ends; if the other one belongs to another site, give each site its own name"
        )
    return tuple(newest[site] for site in sorted(newest))
