"""The desk of a site: answers the calls of other sites, each connection on a thread of its own.

Handlers may block, for calls that wait for something to happen. A desk ends every wait: of a connection that stays
silent, of a handler when the caller's limit has passed, and of all of them when it closes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lightning_parablock.checks import closest
from lightning_parablock.desk.listener import Listener
from lightning_parablock.desk.message import MOST_BYTES, Identity, Reply
from lightning_parablock.errors import RefusedError
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.system.reading import reading

LONGEST_S = 120.0
"""Longest time for which a handler may keep a caller waiting, whatever the caller asks for."""
_LOOK_S = 0.2


@dataclass(frozen=True)
class Call:
    """A call that a handler answers.

    Attributes:
        said: JSON object.
        body: Bytes beside it.
        caller: Who calls, as its headers state.
        limit_s: Seconds for which the caller waits for the answer.
    """

    said: Mapping[str, Any]
    body: memoryview
    caller: Identity
    limit_s: float
    _ends_s: float
    _closing: threading.Event

    def reading(self) -> AbstractContextManager[None]:
        """For taking apart what the caller says: what is wrong with it is a ProtocolError that names the caller."""
        return reading(f"the call of site {self.caller.site!r}" if self.caller.site else "the call of a stranger")

    @property
    def remaining_s(self) -> float:
        """Seconds left to answer, never less than 0."""
        return max(0.0, self._ends_s - time.monotonic())

    @property
    def is_closing(self) -> bool:
        """Whether the desk is being closed."""
        return self._closing.is_set()

    def until(self, condition: threading.Condition, is_ready: Callable[[], bool]) -> bool:
        """Wait until a condition holds, for as long as the caller waits; False where it does not hold by then.

        Args:
            condition: Held by the caller of this method, notified when the answer may have changed.
            is_ready: Whether it is so.

        Raises:
            RefusedError: the desk is being closed; its kind is ``"closing"``.
        """
        while not is_ready():
            if self.is_closing:
                raise RefusedError("the desk of this site is being closed", "closing")
            if not self.remaining_s:
                return False
            condition.wait(min(_LOOK_S, self.remaining_s))
        return True


@dataclass(frozen=True)
class _Route:
    handler: Callable[[Call], Reply]
    for_strangers: bool


class Desk:
    """Answers calls by name.

    Args:
        host: Address at which the other sites reach this one, and at which the desk listens.
        port: TCP port; 0 for any, or for one of ``ports``.
        ports: Where ``port`` is 0: range of ports to take one of; None for any.
        check: Called with the identity of each caller, and the name of the call; raises for strangers. They get its
            error. None to let all pass.
        recognize: Called with the identity of each caller before all else; raises for one that is not who it says it
            is, even where strangers are answered. None where callers cannot be told apart.
        most_bytes: Longest message that is accepted.

    Attributes:
        address: ``host:port``, as the other sites call it.

    Raises:
        ConfigurationError: the port, or every port of the range, is taken, or the address is not this machine's.

    Threads: every method may be called from any thread.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        ports: PortRange | None = None,
        *,
        check: Callable[[Identity, str], None] | None = None,
        recognize: Callable[[Identity], None] | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._routes: Mapping[str, _Route] = MappingProxyType({})
        self._check, self._recognize = check, recognize
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._listener = Listener(host, port, ports, self, most_bytes)
        self.address = self._listener.address

    def answer(self, name: str, handler: Callable[[Call], Reply], *, for_strangers: bool = False) -> None:
        """Answer the calls of a name from now on, in place of an earlier handler of it.

        Args:
            name: Letters, digits, ``-``, ``_`` and ``/``.
            handler: Runs on the connection's thread, several at a time. The caller gets the errors that it raises: the
                kind is that of a RefusedError, and otherwise the name of the error's class.
            for_strangers: Answer callers that the check would refuse, too.
        """
        with self._lock:
            self._routes = MappingProxyType({**self._routes, name: _Route(handler, for_strangers)})

    def admit(self, name: str, caller: Identity) -> bool:
        """Refuse a call before its body is read; returns whether the caller counts as known, and not as a stranger.

        Raises:
            RefusedError: there is no such call, or the desk is being closed.
            ParaBlockError: the caller is not who it says it is, or the check refuses it.
        """
        if self._closing.is_set():
            raise RefusedError("the desk of this site is being closed", "closing")
        if self._recognize is not None:
            self._recognize(caller)
        route = self._routes.get(name)
        if route is None:
            close = closest(name, list(self._routes))
            hint = f"; did you mean {close!r}?" if close else ""
            raise RefusedError(f"this site does not answer calls of the name {name[:80]!r}{hint}", "unknown")
        if self._check is not None and not route.for_strangers:
            self._check(caller, name)
        return not route.for_strangers

    def reply(self, name: str, said: Mapping[str, Any], body: memoryview, caller: Identity, wait_s: float) -> Reply:
        """Let the handler answer; what it raises is raised here.

        Args:
            name: Of a call that :meth:`admit` let pass.
            said: JSON object.
            body: Bytes beside it.
            caller: Who calls.
            wait_s: Seconds for which the caller says that it waits.
        """
        limit_s = min(max(0.0, wait_s), LONGEST_S)
        call = Call(said, body, caller, limit_s, time.monotonic() + limit_s, self._closing)
        return self._routes[name].handler(call)

    def close(self, limit_s: float = 2.0) -> None:
        """Stop listening, which frees the port; end waiting calls with a named error, and cut those that continue.

        Args:
            limit_s: Seconds for calls under way to end by themselves.
        """
        self._closing.set()
        self._listener.close(limit_s)
