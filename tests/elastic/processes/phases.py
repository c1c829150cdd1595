"""Where a site is, as it says itself, and stops there for a test that wants to strike.

A file ``SITE.arm`` in the run's folder names a phase and a number: the thread that comes into it that often writes
``ARRIVED phase`` into the site's trace, and continues when the file is gone: so a fault hits exactly there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_parablock.checkpointing import plain, resumed, sidecars
from lightning_parablock.elastic import opening
from lightning_parablock.elastic.answers import Answers
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.exchange import ElasticExchange
from lightning_parablock.elastic.fetching import Fetcher
from lightning_parablock.elastic.roster import Roster
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.transport.pacing import Pacer

LIMIT_S = 60.0
PHASES = ("computing", "uploading", "giving", "fetching", "merging", "regrouping", "saving", "validating", "draining")


class Phases:
    """One site's phases.

    Args:
        folder: Of the run.
        site: Name of the site.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._founders = folder / "founders"
        self._trace, self._arm = folder / f"{site}.trace", folder / f"{site}.arm"
        self._passed = 0

    def note(self, line: str) -> None:
        """Write into the trace, at once."""
        with self._trace.open("a") as file:
            file.write(f"{line}\n")

    def pass_(self, phase: str) -> None:
        """The site comes into a phase."""
        try:
            wanted = self._arm.read_text()
        except FileNotFoundError:
            return
        name, times = wanted.split()
        if name != phase:
            return
        self._passed += 1
        if self._passed < int(times):
            return
        self.note(f"ARRIVED {phase}")
        until_s = time.monotonic() + LIMIT_S
        self._passed = 0
        while self._arm.exists() and time.monotonic() < until_s:
            time.sleep(0.001)

    def install(self) -> None:
        """Let those parts of the package that carry a phase out announce it."""
        opening.Pacer = _giving(self)
        opening.open_generation = _uploading(self, opening.open_generation)
        for owner, name, phase in (
            (Fetcher, "_pull", "fetching"),
            (ElasticExchange, "wait", "merging"),
            (Answers, "connect", "regrouping"),
            (RoundEngine, "finish", "draining"),
        ):
            setattr(owner, name, _announced(self, phase, getattr(owner, name)))
        _found_together(self._founders)
        write = _slow(self, sidecars.write_atomically)
        for module in (sidecars, resumed, plain):
            vars(module)["write_atomically"] = write


def _found_together(number: Path) -> None:
    """Let a run be founded by as many sites as a file says, and not by the first ones that are enough."""
    found = Roster.founders

    def founders(roster: Roster, fresh: Sequence[Candidate]) -> list[Candidate]:
        return found(roster, fresh) if len(fresh) >= int(number.read_text()) else []

    setattr(Roster, "founders", founders)  # noqa: B010


def _giving(phases: Phases) -> type[Pacer]:
    class Giving(Pacer):
        def wait(self, message_bytes: int) -> None:
            phases.pass_("giving")
            super().wait(message_bytes)

    return Giving


def _uploading(phases: Phases, open_generation: Callable[..., Any]) -> Callable[..., Any]:
    """A site has one pacer for all that it sends; messages of exchanges come to it by way of the generation."""

    class Uploading(Pacer):
        def __init__(self, shared: Pacer) -> None:
            super().__init__(None)
            self._shared = shared

        def wait(self, message_bytes: int) -> None:
            phases.pass_("uploading")
            Pacer.wait(self._shared, message_bytes)  # and not what announces "giving"

    def opened(*args: Any, pacer: Pacer, **kwargs: Any) -> Any:
        return open_generation(*args, pacer=Uploading(pacer), **kwargs)

    return opened


def _announced(phases: Phases, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def announced(*args: Any, **kwargs: Any) -> Any:
        phases.pass_(phase)
        return work(*args, **kwargs)

    return announced


def _slow(phases: Phases, write: Callable[..., Any]) -> Callable[..., Any]:
    """A file whose writing can be struck: half of it is there."""

    def written(path: Path, fill: Callable[[Path], object]) -> None:
        def half(temporary: Path) -> None:
            fill(temporary)
            whole = os.path.getsize(temporary)
            content = temporary.read_bytes()
            os.truncate(temporary, whole // 2)
            phases.pass_("saving")
            temporary.write_bytes(content)

        write(path, half)

    return written
