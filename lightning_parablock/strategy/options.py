"""The options that say how the processes start and meet, and the objects that the Trainer brings along."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision

from lightning_parablock.checks import check_site_name, require
from lightning_parablock.options import OptionGroup, option, record
from lightning_parablock.settings import MethodOptions
from lightning_parablock.strategy.collectives import DEFAULT_TIMEOUT

StartMethod = Literal["popen", "spawn", "fork"]
"""Not forkserver: Lightning's launcher would hand the same memory to all ranks, which train each other's weights."""


def _check_site(name: str, value: Any) -> None:
    if value is not None:
        check_site_name(value)


def _check_seconds(name: str, value: Any) -> None:
    require(0 < value < float("inf"), f"{name} must be a number of seconds > 0, got {value!r}")


def _check_start_method(name: str, value: Any) -> None:
    known = get_args(StartMethod)
    require(value in known, f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


@record
class ProcessOptions(OptionGroup):
    """Processes and sites."""

    process_group_backend: str | None = option(
        default=None,
        kind="path",
        help='Backend of the process groups, "gloo" or "nccl"; None means "nccl" on CUDA and "gloo" elsewhere.',
    )
    timeout: timedelta | None = option(
        default=DEFAULT_TIMEOUT,
        kind="path",
        help="Time limit of Lightning's own collectives (metrics, barriers).",
    )
    site: str | None = option(
        default=None,
        kind="own",
        check=_check_site,
        help="Name of this process' site: 1 to 64 letters, digits, '.', '_' and '-'. Either all processes name their "
        "site or none does. Ranks and clients are then numbered in the order of the sorted names, whatever numbers "
        "the launcher gave them, and messages name the sites.",
    )
    rendezvous: str | None = option(
        default=None,
        kind="path",
        help='Address "host:port" where sites meet that no launcher has started; None means that the launcher '
        "provides it. Every site runs the same command with its own `site`, and the Trainer's `num_nodes` is the "
        "number of sites. The site whose machine has that address opens the port.",
    )
    meeting_timeout_s: float = option(
        default=600.0,
        kind="path",
        check=_check_seconds,
        help="Seconds within which all processes of the run must have met, at the start.",
    )
    start_method: StartMethod = option(
        default="popen",
        kind="path",
        check=_check_start_method,
        help='How processes are started without a launcher such as torchrun: "popen", "spawn" or "fork". "popen" '
        'starts whole programs; "fork" works in notebooks, and each of its processes computes on one core.',
    )


@record
class TrainerOptions(OptionGroup):
    """Objects of the Trainer."""

    accelerator: Accelerator | None = option(default=None, help="Set by the Trainer.")
    parallel_devices: list[torch.device] | None = option(default=None, help="Set by the Trainer.")
    cluster_environment: ClusterEnvironment | None = option(
        default=None, help="Cluster environment of Lightning; None means that the Trainer finds it."
    )
    checkpoint_io: CheckpointIO | None = option(default=None, help="Checkpoint plugin of Lightning.")
    precision_plugin: Precision | None = option(default=None, help="Precision plugin of Lightning, set by the Trainer.")


# The fields of a dataclass begin with those of its last base.
@record
class StrategyOptions(TrainerOptions, ProcessOptions, MethodOptions):
    """Every option of ParaBlockStrategy; its signature, its help texts and docs/options.md are made from them."""
