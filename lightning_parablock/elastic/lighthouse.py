"""The arbiter of an elastic run: torchft's lighthouse, asked again and again from threads of its own.

The lighthouse answers when every process that it knows to be alive has asked: a quorum is a barrier. So each process
asks all the time, at least every 0.5 s, whether or not a caller waits for the answer: no process holds up the others,
however long it is busy with something else.

Measured with three processes on one machine that ask all the time, and send heartbeats from a thread of their own:

* A list takes 1 to 2 ms (median) once all have asked. All members of a quorum get the same list with the same data.
* A process that is killed is missing 1.0 s after it should have asked (``join_timeout_ms``) where more than half of the
  others ask, and otherwise ``silence_s`` after its last heartbeat; until then no process gets a list. One that is
  stopped or cut off is missing then, too, and counts as alive until ``silence_s`` has passed: see
  :mod:`lightning_parablock.elastic.roll`. A stopped one that continues is back at its next call.
* A new process is in the list 0.2 to 0.4 s after its first call, as soon as the others ask again.
* A lighthouse that is started again knows no process: its first list holds the first that asked, and the next one, a
  call later, all of them. Calls to one that is away fail at once and succeed within 2 s after it is back; no list that
  :meth:`Lighthouse.ask` returns lacked a process then.

With three sites whose 10 Mbit/s links were saturated by calls between them, and the lighthouse on a fourth host, a list
took 0.2 s (median), at most 1.1 s, and was always complete. A cut link was a loss after 6 s (``silence_s=5``), and the
site back 1 s after it was restored; a killed process was a loss after 1.0 to 1.4 s.

What follows for the options is in :mod:`lightning_parablock.elastic.lighthouse_server`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from typing_extensions import override

from lightning_parablock.elastic.arbiter import Arbiter, Candidate, of_run
from lightning_parablock.elastic.known_sites import KnownSites
from lightning_parablock.elastic.roll import Roll
from lightning_parablock.elastic.torchft import coordination
from lightning_parablock.errors import ArbiterError

log = logging.getLogger(__name__)

_CALL_S, _BEAT_S = 0.5, 1.0
"""Longest times from one call to the next, and from one heartbeat to the next."""
_CALLS_IN_SILENCE, _BEATS_IN_SILENCE = 10, 5
"""Fewest of both while a process may be silent."""
_LONGEST_PAUSE_S = 2.0
_CONNECT_S = 2.0
_BRIEFLY_S = 0.4


class Lighthouse(Arbiter):
    """The arbiter behind a lighthouse.

    Args:
        address: ``host:port`` of the lighthouse, which need not run yet.
        silence_s: The lighthouse's own: seconds without a heartbeat after which a process is missing in the list.
        known: The sites that may take part; None for any. Whoever reaches the lighthouse can enter any name and address
            there, and what does not fit is left out of every list.

    Raises:
        ConfigurationError: torchft is not installed.

    Threads: two of its own, from the first :meth:`ask` to :meth:`close`; the process ends only when they have. One
    thread at a time may ask.
    """

    def __init__(self, address: str, silence_s: float = 5.0, known: KnownSites | None = None) -> None:
        self._module = coordination()
        self._address, self._silence_s, self._known = address, silence_s, known
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._me: Candidate | None = None
        self._n_asked = 0
        self._list: tuple[int, tuple[Candidate, ...]] = (0, ())
        """The newest list, and the number of the newest :meth:`ask` that it answers."""
        self._problem: str | None = None
        """What the last call failed with; None where it did not fail."""
        self._client = _Client(self._module, address)
        self._roll = Roll(silence_s)
        self._threads: list[threading.Thread] = []
        self._call_limit_s = 3 * silence_s + _CONNECT_S

    @override
    def ask(self, me: Candidate, limit_s: float) -> tuple[Candidate, ...]:
        ends_s = time.monotonic() + limit_s
        with self._changed:
            self._me, self._n_asked = me, self._n_asked + 1
            number = self._n_asked
            self._changed.notify_all()
            self._start_threads()
            while True:
                answers, found = self._list
                if answers >= number:
                    return of_run(found, me)
                left_s = ends_s - time.monotonic()
                if left_s <= 0:
                    raise self._error(limit_s)
                self._changed.wait(left_s)

    @override
    def close(self) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._await_threads(_BRIEFLY_S)  # one within a call ends with the call, which has a limit
        if not any(thread.is_alive() for thread in self._threads):
            atexit.unregister(self._close_at_exit)

    def _close_at_exit(self) -> None:
        """A thread that comes out of native code while the interpreter ends would abort the process."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        self._await_threads(self._call_limit_s)

    def _await_threads(self, limit_s: float) -> None:
        ends_s = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, ends_s - time.monotonic()))

    def _error(self, limit_s: float) -> ArbiterError:
        if self._problem is not None or not self._client.is_open:
            port = self._address.rpartition(":")[2]
            return ArbiterError(
                f"the lighthouse at {self._address} cannot be reached for {limit_s:g} s "
                f"({self._problem or 'no connection'}); start it there with `lightning-parablock lighthouse --port "
                f"{port}`, or let this machine reach it. It may be started again at any time"
            )
        return ArbiterError(
            f"the lighthouse at {self._address} has given no list of sites within {limit_s:g} s: it waits for a "
            f"process that has sent a sign of life in the last {self._silence_s:g} s",
            is_away=False,
        )

    def _start_threads(self) -> None:
        if not self._threads:
            atexit.register(self._close_at_exit)
            for name, work in (("calls", self._call_on), ("heartbeats", self._beat_on)):
                thread = threading.Thread(target=work, daemon=True, name=f"parablock-lighthouse-{name}")
                self._threads.append(thread)
                thread.start()

    # --- the two threads ----------------------------------------------------------------------------------------------

    def _call_on(self) -> None:
        every_s, pause_s = min(_CALL_S, self._silence_s / _CALLS_IN_SILENCE), 0.0
        while not self._closed.is_set():
            with self._changed:
                me, number = self._me, self._n_asked
            assert me is not None, "an ask starts the thread"
            try:
                quorum = self._client.call(lambda connected, me=me, number=number: self._quorum(connected, me, number))
            except Exception as error:
                pause_s = min(_LONGEST_PAUSE_S, max(every_s, 2 * pause_s))
                self._note_problem(error)
                self._closed.wait(pause_s)
                continue
            pause_s = 0.0
            self._note_list(quorum, me)
            with self._changed:
                self._changed.wait_for(lambda number=number: self._n_asked > number or self._closed.is_set(), every_s)

    def _quorum(self, client: Any, me: Candidate, number: int) -> Any:
        # Longer than any barrier: an answer that is given up would take this process out of the next list.
        limit = timedelta(seconds=self._call_limit_s)
        said = {"parablock": me.to_json(), "number": number}
        return client.quorum(_id_of(me), limit, store_address=me.desk, step=max(0, me.opened), data=said)

    def _note_list(self, quorum: Any, me: Candidate) -> None:
        found: dict[str, Candidate] = {}
        answers = 0
        for member in quorum.participants:
            one, number = _said_by(member)
            if one is None:
                continue  # another program uses this lighthouse
            if self._known is not None and not self._known.has(one):
                continue
            found[member.replica_id] = one
            if member.replica_id == _id_of(me):
                answers = number
        alive = self._roll.read(quorum.quorum_id, found, time.monotonic())
        with self._changed:
            self._problem, self._list = None, (answers, alive)
            self._changed.notify_all()

    def _note_problem(self, error: Exception) -> None:
        text = (str(error).splitlines() or [type(error).__name__])[0][:300]
        with self._changed:
            if self._problem is None and not self._closed.is_set():
                log.info("the lighthouse at %s does not answer, and is asked again: %s", self._address, text)
            self._problem = text
            self._roll.note_absence()

    def _beat_on(self) -> None:
        client = _Client(self._module, self._address)
        limit = timedelta(seconds=self._silence_s)
        while not self._closed.wait(min(_BEAT_S, self._silence_s / _BEATS_IN_SILENCE)):
            with self._changed:
                me = self._me
            assert me is not None, "an ask starts the thread"
            try:
                client.call(lambda connected, me=me: connected.heartbeat(_id_of(me), limit))
            except Exception as error:
                log.debug("a heartbeat was lost: %s", error)  # the calls report it


class _Client:
    """A connection to the lighthouse that is opened again after an error: a broken one may hang for minutes."""

    def __init__(self, module: Any, address: str) -> None:
        self._module, self._address = module, f"http://{address}"
        self._open: Any = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._open is not None

    def call(self, action: Callable[[Any], Any]) -> Any:
        """Let an action use the connection; any error closes it and is raised."""
        if self._open is None:
            self._open = self._module.LighthouseClient(self._address, timedelta(seconds=_CONNECT_S))
        try:
            return action(self._open)
        except BaseException:
            self._open = None
            raise


def _id_of(me: Candidate) -> str:
    return f"{me.site} {me.incarnation}"


def _said_by(member: Any) -> tuple[Candidate | None, int]:
    """What a process of a list says of itself, and the number of its call; None, and 0, where it is another program."""
    said = member.data
    if not isinstance(said, Mapping):
        return None, 0
    number = said.get("number")
    return Candidate.from_json(said.get("parablock")), number if type(number) is int else 0
