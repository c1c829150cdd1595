"""Two fits in two processes that alternate on one core step by step, so compared steps are neighbours in time.

    seconds = take_turns({"plain": "benchmarks.harness.turn_jobs:fit_plain", "parablock": "..."}, plan, limit_s=600)

A step lasts from one ``on_train_batch_start`` to the next. It covers everything that Lightning, the strategy and the
model do for it, including the switch to the next block at the end of a round, but not the other fit's turn.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import lightning.pytorch as pl

from benchmarks.harness.clock import settle
from benchmarks.harness.workers import RunFailedError

WARM_UP_STEPS = 2
"""Dropped by :func:`take_turns`: during these the other process may still be loading its model."""


class Turns(pl.Callback):
    """Waits for its turn before each step and records the seconds per step."""

    def __init__(self, partner: Connection, *, begins: bool, limit_s: float) -> None:
        self.seconds: list[float] = []
        self._partner, self._begins, self._limit_s = partner, begins, limit_s
        self._start_s: float | None = None

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        if self._start_s is not None or not self._begins:
            self._note()
            self._wait()
        settle()
        self._start_s = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        self._note()

    def _note(self) -> None:
        settle()
        if self._start_s is not None:
            self.seconds.append(time.perf_counter() - self._start_s)
            self._pass_on()

    def _pass_on(self) -> None:
        try:
            self._partner.send(None)
        except BrokenPipeError:  # the partner has finished its last step
            return

    def _wait(self) -> None:
        if not self._partner.poll(self._limit_s):
            raise RunFailedError(f"the other fit made no step within {self._limit_s:g} s")
        self._partner.recv()


def take_turns(jobs: Mapping[str, str], plan: Mapping[str, Any], *, limit_s: float) -> dict[str, list[float]]:
    """Run two fits with the same number of steps; name -> seconds of each step, without the first and the last ones.

    Args:
        jobs: Name -> ``module:function``, called with the plan and a :class:`Turns` to add to the callbacks.
        plan: Passed to both.
        limit_s: Time limit for both together.

    Raises:
        RunFailedError: one of them failed, or the time limit was exceeded.
    """
    context, core = multiprocessing.get_context("spawn"), max(os.sched_getaffinity(0))
    ends, answers = context.Pipe(), {name: context.Pipe(duplex=False) for name in jobs}
    processes = [
        context.Process(
            target=_run, args=(job, dict(plan), ends[index], index == 0, answers[name][1], core, limit_s), daemon=True
        )
        for index, (name, job) in enumerate(jobs.items())
    ]
    try:
        for process in processes:
            process.start()
        deadline_s = time.monotonic() + limit_s
        return {name: _answer(*answer, deadline_s)[WARM_UP_STEPS:-1] for name, answer in answers.items()}
    finally:
        for process in processes:
            process.kill()
            process.join()


def round_sums(seconds: Sequence[float], local_steps: int) -> list[float]:
    """Seconds that the steps of each complete round took."""
    whole = len(seconds) - len(seconds) % local_steps
    return [sum(seconds[first : first + local_steps]) for first in range(0, whole, local_steps)]


def round_pairs(seconds: Mapping[str, Sequence[float]], local_steps: int) -> list[tuple[float, float]]:
    """Seconds per round of the first fit and of the second, whose steps were interleaved."""
    first, second = (round_sums(one, local_steps) for one in seconds.values())
    return list(zip(first, second, strict=True))


def _answer(receiving: Connection, sending: Connection, deadline_s: float) -> list[float]:
    sending.close()  # so that a process that dies silently is noticed
    if not receiving.poll(max(0.0, deadline_s - time.monotonic())):
        raise RunFailedError("not finished in time")
    try:
        answer = receiving.recv()
    except EOFError as error:
        raise RunFailedError("a process ended without a word") from error
    if isinstance(answer, str):
        raise RunFailedError(answer)
    return answer


def _run(
    job: str, plan: dict[str, Any], partner: Connection, begins: bool, answer: Connection, core: int, limit_s: float
) -> None:
    """Run the job in one process, on one core with one thread; Lightning's output is discarded."""
    os.sched_setaffinity(0, {core})
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    module, _, name = job.partition(":")
    turns = Turns(partner, begins=begins, limit_s=limit_s)
    try:
        getattr(importlib.import_module(module), name)(plan, turns)
        answer.send(turns.seconds)
    except Exception:  # sent to the starter, which raises it
        answer.send(traceback.format_exc()[-1500:])
