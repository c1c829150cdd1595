"""Which processes count as alive, given the lists of a lighthouse: being slow is no loss, and being gone is seen early.

A list lacks processes that have not asked for a second. That may be a process that has ended, one whose link is
busy, or one that a lighthouse that has just been started does not know again yet. What tells them apart is the machine
of the process: where it answers that nothing listens at the desk's address, the process is gone. All others count as
alive until they have been missing for the silence limit.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from lightning_parablock.elastic.arbiter import Candidate

_KNOCK_S = 0.3


class Roll:
    """The processes that count as alive.

    Args:
        silence_s: Seconds for which a process may be missing in the lists.
        is_gone: Whether nothing listens any more at a desk's address.
    """

    def __init__(self, silence_s: float, is_gone: Callable[[str], bool] | None = None) -> None:
        self._silence_s = silence_s
        self._is_gone = is_gone or nobody_listens
        self._known: dict[str, tuple[Candidate, float]] = {}
        """Each process by its name, and when it was heard last."""
        self._quorum_id = -1
        self._was_away = False

    def note_absence(self) -> None:
        """The lighthouse does not answer: no process is heard, and none is missing."""
        self._was_away = True

    def read(self, quorum_id: int, found: Mapping[str, Candidate], now_s: float) -> tuple[Candidate, ...]:
        """Take a list in; returns the processes that count as alive then.

        Args:
            quorum_id: The lighthouse's number of the list: falls when another one has taken its place.
            found: The processes of the list, by name.
            now_s: Seconds on a clock that never goes back.
        """
        if self._was_away or quorum_id < self._quorum_id:
            self._known = {name: (one, now_s) for name, (one, _) in self._known.items()}
        self._was_away, self._quorum_id = False, quorum_id
        self._known |= {name: (one, now_s) for name, one in found.items()}
        for name in self._known.keys() - found.keys():
            one, heard_s = self._known[name]
            if now_s - heard_s >= self._silence_s or self._is_gone(one.desk):
                del self._known[name]
        return tuple(one for one, _ in self._known.values())


def nobody_listens(address: str) -> bool:
    """Whether the machine at an address reports that nothing listens there; False where it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), timeout=_KNOCK_S).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError, OverflowError):  # no answer; not an address, or not a port
        return False
    return False
