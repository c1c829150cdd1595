"""Starts the other processes of this machine, where no launcher did, and lets none of them outlive the others."""

from __future__ import annotations

import atexit
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_parablock.errors import PeerLostError
from lightning_parablock.launching.checkpoint_choice import note_choice
from lightning_parablock.launching.elastic_environment import ElasticEnvironment
from lightning_parablock.launching.launched import refuse_lonely_nodes
from lightning_parablock.lightning_private.processes import ForkLauncher, ScriptLauncher, limit_threads
from lightning_parablock.system.looked_after import run_looked_after

_STARTED_BY = "LIGHTNING_PARABLOCK_STARTED_BY"
_starter: str | None = os.environ.pop(_STARTED_BY, None)
"""Pid of the process whose launcher started this one; taken out, since what this one starts has another starter."""

_FOLDER = os.getcwd()
_FAILED_LIMIT_S = 5.0
_FINISHED_LIMIT_S = 30.0
_POLL_S = 0.05
_started: list[subprocess.Popen[bytes]] = []
"""Of this process, whichever trainer started them: a later trainer finds them running."""


class ProcessLauncher(ScriptLauncher):
    """Lightning's launcher of whole programs, with three differences.

    The others run this program's own command, interpreter options and ``-m`` included, from the folder it was started
    in. One that fails ends this program with an error, where Lightning kills it without a word. And this program ends
    after the others: with exit code 1 if one of them failed.

    Attributes:
        searching: Entered while Lightning searches for the checkpoint that ``ckpt_path`` names; None for nothing.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.procs = _started
        self.searching: Callable[[Trainer], AbstractContextManager[None]] | None = None

    @property
    @override
    def is_interactive_compatible(self) -> bool:
        return self.num_processes == 1  # which runs in the notebook's own process

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if isinstance(self.cluster_environment, LightningEnvironment):
            refuse_lonely_nodes(self.num_nodes)
        if self.num_processes * self.num_nodes > 1 and not self.cluster_environment.creates_processes_externally:
            self._start_others()
            atexit.register(_wait_for_others)
        limit_threads(self.num_processes)
        has_others = self.num_processes * self.num_nodes > 1
        if trainer is not None and (has_others or isinstance(self.cluster_environment, ElasticEnvironment)):
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            note_choice(trainer, given.get("weights_only"), self.searching)
        return _to_the_end(function, *args, **kwargs)

    def _start_others(self) -> None:
        self.refuse_started()
        cluster = self.cluster_environment
        # In our own environment, too: LOCAL_RANK says that the processes have been started.
        os.environ |= {
            "MASTER_ADDR": cluster.main_address,
            "MASTER_PORT": str(cluster.main_port),
            "NODE_RANK": str(cluster.node_rank()),
            "LOCAL_RANK": str(cluster.local_rank()),
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        for local_rank in range(1, self.num_processes):
            environment = {**os.environ, "LOCAL_RANK": str(local_rank), _STARTED_BY: str(os.getpid())}
            command = [sys.executable, *sys.orig_argv[1:]]
            self.procs.append(subprocess.Popen(command, env=environment, cwd=_FOLDER))


class FunctionLauncher(ForkLauncher):
    """Lightning's launcher of functions in processes of their own, whose runs end together.

    Args:
        strategy: The strategy whose processes it starts.
        start_method: "fork" or "spawn".
    """

    def __init__(self, strategy: Any, start_method: Literal["fork", "spawn"]) -> None:
        super().__init__(strategy, start_method=start_method)
        self._run = _to_the_end if start_method == "spawn" else _to_the_end_on_one_core

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if isinstance(self.strategy.cluster_environment, LightningEnvironment):
            refuse_lonely_nodes(self.strategy.num_nodes)
        return super().launch(partial(self._run, function), *args, trainer=trainer, **kwargs)


def _to_the_end_on_one_core(function: Any, *args: Any, **kwargs: Any) -> Any:
    """:func:`_to_the_end` in a forked process.

    A fork does not copy the threads on which its parent has computed, and OpenMP would wait for them without limit.
    With one thread it needs no others.
    """
    torch.set_num_threads(1)
    return _to_the_end(function, *args, **kwargs)


def _to_the_end(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a method of a trainer, and end together with the other ranks.

    Lightning's own teardown comes before the last hooks of users, in which a rank may still fail.
    """
    result = function(*args, **kwargs)
    part: Callable[[], None] | None = getattr(getattr(function.__self__, "strategy", None), "part", None)
    if part is not None:
        part()
    return result


def while_others_live(action: Callable[[], None]) -> None:
    """Do what needs the other processes, such as meeting them, which by itself would wait for a dead one for long.

    Args:
        action: Runs on a thread of its own where this process has started others or was started by one.

    Raises:
        PeerLostError: one of those processes ended meanwhile.
    """
    if not _started and _starter is None:
        action()
        return
    failure = run_looked_after(action, _refuse_ended, "parablock-meeting")
    if failure is not None:
        raise failure


def end_others(limit_s: float = _FAILED_LIMIT_S) -> None:
    """Wait until the processes that this one has started have ended, at most ``limit_s``, and kill the rest."""
    _wait(limit_s)
    for process in _started:
        process.kill()
        process.wait()
    _started.clear()


def _refuse_ended() -> None:
    for local_rank, process in enumerate(_started, start=1):
        if process.poll() is not None:
            raise PeerLostError(
                f"the process with local rank {local_rank} ended with exit code {process.returncode} before the "
                "clients had met; see what it said"
            )
    if _starter not in (None, str(os.getppid())):
        raise PeerLostError("the process that started this one ended before the clients had met")


def _wait(limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while any(process.poll() is None for process in _started) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _wait_for_others() -> None:
    """The last thing this process does."""
    if hasattr(sys, "last_value"):  # Python has printed the traceback of an error that no trainer has seen
        end_others()
        return
    _wait(_FINISHED_LIMIT_S)
    late = [process.pid for process in _started if process.returncode is None]
    if late:
        _say(f"parablock: the processes {late} still run after {_FINISHED_LIMIT_S:g} s; they are left to themselves")
    codes = {rank: process.returncode for rank, process in enumerate(_started, start=1) if process.returncode}
    if codes:
        _say(f"parablock: processes ended with an error; exit code by local rank: {codes}")
        sys.stdout.flush()
        os._exit(1)  # nothing else changes the exit code of a process that is on its way out


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
