"""Processes and their default group: launchers, threads, the backend, and reductions."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.distributed import (
    _get_default_process_group_backend_for_device,  # pyright: ignore[reportPrivateUsage]
    _init_dist_connection,  # pyright: ignore[reportPrivateUsage]
    _set_num_threads_if_needed,  # pyright: ignore[reportPrivateUsage]
    _sync_ddp_if_available,  # pyright: ignore[reportPrivateUsage]
)
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,  # pyright: ignore[reportPrivateUsage]
    _SubprocessScriptLauncher,  # pyright: ignore[reportPrivateUsage]
)
from torch import Tensor
from typing_extensions import override


class ScriptLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher of whole programs.

    On Ctrl-C, Lightning kills the processes that a launcher of this class has started. Without it as the base, they
    would outlive the run.
    """

    def refuse_started(self) -> None:
        """Refuse to start processes where this one has been started by a launcher, as Lightning does.

        Without this, a wrongly set environment would start processes that start processes.

        Raises:
            RuntimeError: it has been.
        """
        self._check_can_spawn_children()


class ForkLauncher(_MultiProcessingLauncher):
    """Lightning's launcher of functions in processes of their own, for notebooks.

    Without it, a notebook could train on one client only.
    """

    @property
    def strategy(self) -> Any:
        """The strategy whose processes it starts."""
        return self._strategy


class LaunchingStrategy(ParallelStrategy):
    """Lightning's base of strategies over several processes, with a public hook for the launcher.

    The Trainer asks for the launcher while it is built. Without this hook, it would start no processes.
    """

    @abstractmethod
    def make_launcher(self) -> ScriptLauncher | ForkLauncher:
        """The launcher of the strategy's processes."""

    @override
    def _configure_launcher(self) -> None:
        self._launcher = self.make_launcher()


def starts_functions(strategy: Any) -> bool:
    """Whether the processes of a strategy are functions (fork, spawn), whose logs and records stay in them.

    Without this, the command line would measure a model that no process of its own has trained.
    """
    return isinstance(strategy.launcher, _MultiProcessingLauncher)


def limit_threads(n_processes: int) -> None:
    """Share the cores among the processes of this machine, unless the user has set OMP_NUM_THREADS.

    Without this, every process would start as many threads as the machine has cores.
    """
    _set_num_threads_if_needed(num_processes=n_processes)


def default_backend(device: torch.device) -> str:
    """The backend of process groups for a device: "nccl" on CUDA, "gloo" on the CPU.

    Without this, accelerators that Lightning learns later would need a list here.
    """
    return _get_default_process_group_backend_for_device(device)


def open_default_group(environment: ClusterEnvironment, backend: str, *, rank: int, **group: Any) -> None:
    """Open the default process group as Lightning's own strategies do.

    Without this, MASTER_ADDR and MASTER_PORT would stay unset for libraries that read them, and an NCCL group would not
    be destroyed when the program exits.

    Args:
        environment: Knows how many ranks there are and where they meet.
        backend: Backend of the group.
        rank: Number of this rank.
        **group: Further arguments of ``init_process_group``.
    """
    _init_dist_connection(environment, backend, global_rank=rank, **group)


def reduce_over(tensor: Tensor, group: Any, reduce_op: Any) -> Tensor:
    """Reduce a tensor over the ranks of a group as Lightning's own strategies do, integers and names included.

    Without this, metrics would be reduced by another rule than under other strategies.
    """
    return _sync_ddp_if_available(tensor, group, reduce_op=reduce_op)
