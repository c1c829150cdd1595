"""Dry run: tables of clients, blocks, bytes, memory, the first rounds and the data, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from torch import nn

from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.planning.fitting import budget_of, fewest_blocks, reason_of
from lightning_parablock.planning.memory import FLOAT_BYTES, MemoryPart, memory_parts, model_size, total_bytes
from lightning_parablock.planning.traffic import carried_scalars, traffic_by_role
from lightning_parablock.settings import AUTO, Aggregation, Compression, LowRank, ServerOptimizer, Settings, option_word

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer  # the planner's tables must not need Lightning

MEGABYTE = 1_000_000
_AGREED = "agreed by the clients in round 0"
_AGREED_CODEC = f"{_AGREED}; bytes below are without any, memory is the most that one takes"


def print_dry_run(console: Console, trainer: Trainer, module: LightningModule, datamodule: Any, seed: int) -> None:
    """Print the plan of a trainer's run.

    Args:
        console: Console to print on.
        trainer: The trainer, with a ParaBlock strategy.
        module: The model, with or without weights.
        datamodule: Its data module, or None.
        seed: Random seed of the run.

    Raises:
        ConfigurationError: the strategy is not one of this package, or the model cannot be partitioned as configured.
        DataError: the data cannot be read.
    """
    from lightning_parablock.strategy.presets import PRESETS
    from lightning_parablock.strategy.refusals import refuse_factors

    settings: Settings | None = getattr(trainer.strategy, "settings", None)
    if settings is None:
        raise ConfigurationError(
            f"--dry-run needs a ParaBlock strategy; give --strategy and one of {', '.join(PRESETS)}"
        )
    n_ranks = trainer.num_devices * trainer.num_nodes
    described = _described(trainer, module, datamodule, n_ranks)
    settings = dataclasses.replace(settings, seed=seed)
    if settings.blocks == AUTO:
        budget = budget_of(trainer.strategy.root_device, module, settings.memory, processes=trainer.num_devices)
        fit = fewest_blocks(module, [budget], n_ranks, settings)
        console.print(f"blocks: {len(fit.blocks)}, {reason_of(fit, [budget])}, if all clients have as much memory")
        settings = settings.with_blocks(len(fit.blocks))
    refuse_factors(partition(module, settings.blocks, settings.unmatched), settings.compression)
    print_plan(console, module, settings, n_ranks, described)


def _described(trainer: Trainer, module: LightningModule, datamodule: Any, n_ranks: int) -> dict[str, Any] | None:
    """Description of the first client's data by the data module; None if it gives none."""
    if datamodule is None or not hasattr(datamodule, "describe"):
        return None
    module.trainer = datamodule.trainer = trainer
    trainer.strategy.connect(module)
    cluster: Any = getattr(trainer.strategy, "cluster_environment", None)
    if cluster is not None:  # otherwise known only once the processes have been started
        cluster.set_world_size(n_ranks)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule.describe()


def print_plan(
    console: Console,
    module: nn.Module,
    settings: Settings,
    n_ranks: int,
    data: dict[str, Any] | None,
    rounds: int = 12,
) -> None:
    """Print the whole plan of a run on ``n_ranks`` ranks.

    Raises:
        ConfigurationError: the model cannot be partitioned as configured.
    """
    blocks = partition(module, settings.blocks, settings.unmatched)
    console.print(_method_table(settings, n_ranks, len(blocks)))
    console.print(_blocks_table(blocks, n_ranks, settings))
    whose = "client" if (settings.clients or n_ranks) == n_ranks else "rank with its clients"
    console.print(memory_table(memory_parts(model_size(module, blocks), n_ranks, settings), whose))
    console.print(_rounds_line(blocks, settings, rounds) + "\n")
    if data is not None:
        console.print(_data_table(data))
    console.print("dry run: nothing was trained")


def memory_table(parts: Sequence[MemoryPart], whose: str = "client") -> Group:
    """Table of memory by purpose, on the device and on the host."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("for")
    table.add_column("where")
    table.add_column("MB", justify="right")
    for part in parts:
        table.add_row(part.purpose, part.where, mb(part.size_bytes))
    for place, on_device in (("device", True), ("host", False)):
        table.add_row("together", place, mb(total_bytes(parts, on_device=on_device)))
    return Group(f"memory of a {whose} in its largest round, without activations", table)


def plain_table(title: str) -> Table:
    """Table of names and values."""
    table = Table(title=title, title_justify="left", title_style="", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    table.add_column()
    return table


def mb(size_bytes: float) -> str:
    """Text of a size in megabytes."""
    return f"{size_bytes / MEGABYTE:,.2f}"


def _method_table(settings: Settings, n_ranks: int, n_blocks: int) -> Table:
    table = plain_table("method")
    n_clients = settings.clients or n_ranks
    table.add_row("clients", str(n_clients) if n_clients == n_ranks else f"{n_clients} on {n_ranks} ranks")
    if settings.cohort is not None:
        table.add_row("cohort", f"{settings.cohort} clients per round, {settings.cohort_sampling}")
    table.add_row("blocks", str(n_blocks))
    steps = _AGREED if "local_steps" in settings.pending else f"{settings.local_steps} optimizer steps per round"
    table.add_row("local steps", steps)
    table.add_row("delay", _delay(settings))
    for name in (
        "block_order",
        "topology",
        "compression",
        "aggregation",
        "server_optimizer",
        "in_flight_value",
        "seed",
    ):
        said = _AGREED_CODEC if name in settings.pending else _said(getattr(settings, name))
        table.add_row(name.replace("_", " "), said)
    return table


def _said(value: object) -> str:
    """A value as an option spells it; for an object, with its settings that differ from the defaults."""
    if not isinstance(value, Aggregation | Compression | ServerOptimizer):
        return str(value)
    changed = [
        f"{field.name} {getattr(value, field.name)}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return option_word(value) + (f" ({', '.join(changed)})" if changed else "")


def _delay(settings: Settings) -> str:
    warm_up = settings.delay_warmup_rounds
    first = {0: "", 1: ", none in the first round"}.get(warm_up, f", none in the first {warm_up} rounds")
    return _later_delay(settings) + first


def _later_delay(settings: Settings) -> str:
    if "delay_steps" in settings.pending:
        return "as many as local steps"
    if "local_steps" in settings.pending:
        return f"{settings.delay_steps} optimizer steps"
    rounds = settings.delay_steps / settings.local_steps
    hidden = "blocking" if rounds == 0 else f"{rounds:g} round{'' if rounds == 1 else 's'} behind"
    return f"{settings.delay_steps} optimizer steps ({hidden})"


def _blocks_table(blocks: Sequence[Block], n_clients: int, settings: Settings) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("block")
    for heading in ("parameters", "MB", *(f"MB up / down: {role}" for role in traffic_by_role(1, n_clients, settings))):
        table.add_column(heading, justify="right")
    for block in blocks:
        carried = carried_scalars(block.numel, block.shapes, settings.compression)
        traffic = traffic_by_role(carried, n_clients, settings).values()
        rates = [f"{mb(t.upload_bytes)} / {mb(t.download_bytes)}" for t in traffic]
        table.add_row(block.name, f"{block.numel:,}", mb(block.numel * FLOAT_BYTES), *rates)
    total = sum(block.numel for block in blocks)
    title = "blocks, and the megabytes that a rank sends and receives for one client in a round that trains them"
    if isinstance(settings.compression, LowRank):
        title += ", of the larger factor"
    return Group(title, table, f"{len(blocks)} blocks, {total:,} parameters, {mb(total * FLOAT_BYTES)} MB as float32")


def _rounds_line(blocks: Sequence[Block], settings: Settings, rounds: int) -> str:
    who, then = "", ""
    if settings.block_order == "importance":
        rounds, then = min(rounds, len(blocks)), ", then blocks drawn by their gradient norms"
    if settings.block_order == "cyclic":
        who, then = "client 0's ", "; client i is i blocks ahead"
    # The members of the cohorts do not matter here: for the cyclic order, the first client's blocks are shown.
    made = Schedule(settings.block_order, len(blocks), settings.seed, Cohorts(1))
    order = (block for t in range(rounds) for block in made.work_of(t, {}))
    return f"{who}first {rounds} rounds train: " + ", ".join(blocks[index].name for index in order) + then


def _data_table(data: dict[str, Any]) -> Table:
    table = plain_table("data")
    for name, value in data.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        table.add_row(name.replace("_", " "), str(value))
    return table
