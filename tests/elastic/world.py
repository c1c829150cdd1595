"""Virtual time for threads: one of them runs at a time, and a seed decides which, so that a history can be repeated."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable

from typing_extensions import override


class Killed(BaseException):
    """Ends a thread whose site was killed."""


class World:
    """An event queue, whose events run on the thread that calls :meth:`run`, one after the other."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.actor: Actor | None = None

    def after(self, delay: float, event: Callable[[], None]) -> None:
        """Let an event happen."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, event))

    def lag(self, scale: float = 1.0) -> float:
        """How long a message takes."""
        return scale * self.rng.expovariate(1.0) * self.rng.choice([0.2, 1.0, 4.0])

    def run(self, is_over: Callable[[], bool], limit: int = 200_000) -> bool:
        """Let everything happen; returns whether it came to an end before nothing happened any more."""
        for _ in range(limit):
            if is_over():
                return True
            if not self._queue:
                return False
            self.now, _, event = heapq.heappop(self._queue)
            event()
        return False


class Actor:
    """A thread of a site, which runs only while the world waits for it.

    Args:
        world: Its world.
        action: What it does.
    """

    def __init__(self, world: World, action: Callable[[], None]) -> None:
        self.world, self._action = world, action
        self._mine, self._worlds = threading.Semaphore(0), threading.Semaphore(0)
        self.is_killed = self.is_over = False
        self.error: BaseException | None = None
        self.frozen_until = 0.0
        self.is_waiting = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to run, once the world comes to it."""
        self._thread.start()
        self.world.after(0.0, self.go_on)

    def go_on(self) -> None:
        """Called by the world: let the thread run until it pauses."""
        if self.is_over:
            return
        if self.world.now < self.frozen_until and not self.is_killed:
            self.world.after(self.frozen_until - self.world.now, self.go_on)
            return
        self.world.actor = self
        self._mine.release()
        self._worlds.acquire()
        self.world.actor = None

    def kill(self) -> None:
        """End the thread where it is; called by the world."""
        self.is_killed = True
        if self._thread.is_alive() and not self.is_over:
            self.go_on()
            self._thread.join(10)
            assert not self._thread.is_alive()

    def pause(self, delay: float) -> None:
        """Called by the thread: let some time pass."""
        self.world.after(delay, self.go_on)
        self.yield_()

    def yield_(self) -> None:
        """Called by the thread: until the world lets it continue."""
        self._worlds.release()
        self._mine.acquire()
        if self.is_killed:
            raise Killed

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self.is_killed:
                self._action()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._worlds.release()


class Baton(threading.Condition):
    """A condition whose wait lets the world continue, in virtual time."""

    def __init__(self, world: World) -> None:
        super().__init__(threading.RLock())
        self._world = world
        self._waiting: list[Actor] = []

    @override
    def wait(self, timeout: float | None = None) -> bool:
        actor = self._world.actor
        assert actor is not None, "only actors wait"
        self._waiting.append(actor)
        self.release()
        try:
            actor.yield_()
        finally:
            self.acquire()
        return True

    @override
    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            self._world.after(0.0, actor.go_on)
