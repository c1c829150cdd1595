"""An arbiter in this process: lists whoever has asked lately, as the lighthouse does, and can be told to drop one."""

from __future__ import annotations

import threading
import time

from lightning_parablock.elastic.arbiter import Candidate, of_run
from lightning_parablock.errors import ArbiterError


class LocalLighthouse:
    """What the arbiters of several sites in one process share.

    Args:
        silence_s: Whoever has not asked for so long is not alive.
        founders: Until so many have come, each sees itself alone.
    """

    def __init__(self, silence_s: float = 0.5, founders: int = 1) -> None:
        self.silence_s, self.founders = silence_s, founders
        self._lock = threading.Lock()
        self._heard: dict[str, tuple[float, Candidate]] = {}
        self._dropped: set[str] = set()
        self.is_away = False

    def arbiter(self) -> LocalArbiter:
        """One site's access."""
        return LocalArbiter(self)

    def drop(self, site: str) -> None:
        """The processes of a site that there are now are not heard any more."""
        with self._lock:
            self._dropped |= {key for key, (_, one) in self._heard.items() if one.site == site}

    def hear(self, me: Candidate) -> tuple[Candidate, ...]:
        """Note a sign of life; returns those of all that live."""
        if self.is_away:
            raise ArbiterError("the lighthouse is away")
        now_s = time.monotonic()
        with self._lock:
            if me.incarnation in self._dropped:
                raise ArbiterError("cut off")
            self._heard[me.incarnation] = now_s, me
            living = [
                one
                for key, (heard_s, one) in self._heard.items()
                if key not in self._dropped and now_s - heard_s < self.silence_s
            ]
            self.founders = 0 if len(living) >= self.founders else self.founders
        if self.founders:
            return (me,)
        return of_run(living, me)


class LocalArbiter:
    """See :class:`LocalLighthouse`."""

    def __init__(self, lighthouse: LocalLighthouse) -> None:
        self._lighthouse = lighthouse

    def ask(self, me: Candidate, limit_s: float) -> tuple[Candidate, ...]:
        """The list."""
        return self._lighthouse.hear(me)

    def close(self) -> None:
        """Nothing is open."""
