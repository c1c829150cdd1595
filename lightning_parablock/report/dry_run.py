"""What a run would do, without doing it: clients, blocks, bytes, memory, the first rounds, the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from torch import nn

from lightning_parablock.blocks import Block, partition
from lightning_parablock.schedule import block_of_round
from lightning_parablock.settings import ServerNesterov, Settings

WIRE_BYTES = 4
"""Bytes a parameter on the wire: deltas and commits travel as float32."""
MASTER_BYTES = 4
"""Bytes a parameter of the server's committed value and of each of its moments, float32."""
ADAM_MOMENTS = 2
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Traffic:
    """Payload of one round, in bytes, without message headers (some dozens of bytes a chunk)."""

    upload_bytes: int
    download_bytes: int


def round_traffic(numel: int, n_clients: int, topology: str) -> dict[str, Traffic]:
    """Payload a round and client for a block of ``numel`` parameters, by role (METHOD: invariant 9).

    Over all sockets both topologies carry 2 (N - 1) S q bytes a round.
    """
    block_bytes = numel * WIRE_BYTES
    others = n_clients - 1
    if others == 0:
        return {"the only client": Traffic(0, 0)}
    if topology == "star":
        hub = Traffic(others * block_bytes, others * block_bytes)
        return {"client 0, which serves": hub, "every other client": Traffic(block_bytes, block_bytes)}
    each = round(2 * others * block_bytes / n_clients)
    return {"every client": Traffic(each, each)}


def exchanges_in_flight(settings: Settings) -> int:
    """How many rounds' exchanges a client has under way at most while it computes."""
    return math.ceil(settings.delay_steps / settings.local_steps)


def memory_parts(
    blocks: Sequence[Block], weights_bytes: int, settings: Settings, n_clients: int
) -> dict[str, tuple[str, int]]:
    """Memory of a client by purpose: where it lies ("device" or "host") and bytes, for the largest block.

    The optimizer's state is counted as AdamW's two moments in float32; activations are not in it, because they depend
    on batch and sequence length.
    """
    largest = max(block.numel for block in blocks)
    total = sum(block.numel for block in blocks)
    in_flight = exchanges_in_flight(settings)
    server_values = 2 if isinstance(settings.server_optimizer, ServerNesterov) else 1
    shard = math.ceil(total / n_clients) if settings.topology == "sharded" else total
    where = "host, client 0" if settings.topology == "star" and n_clients > 1 else "host"
    return {
        "weights": ("device", weights_bytes),
        "gradient of the active block": ("device", largest * WIRE_BYTES),
        "optimizer state of the active block (AdamW)": ("device", ADAM_MOMENTS * largest * WIRE_BYTES),
        "start value of the active block": ("device", largest * WIRE_BYTES),
        "committed values of the active block and those in flight": ("device", (1 + in_flight) * largest * WIRE_BYTES),
        "deltas in flight": ("device", in_flight * largest * WIRE_BYTES),
        "send and receive buffers": ("host", 2 * max(1, in_flight) * largest * WIRE_BYTES),
        "server: committed value and optimizer state": (where, server_values * shard * MASTER_BYTES),
    }


def print_plan(
    console: Console,
    module: nn.Module,
    settings: Settings,
    n_clients: int,
    data: dict[str, Any] | None,
    rounds: int = 12,
) -> None:
    """Print the whole plan.

    Raises:
        ConfigurationError: the model cannot be cut into blocks as asked.
    """
    blocks = partition(module, settings.blocks, settings.unmatched)
    weights_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    console.print(_method_table(settings, n_clients, len(blocks)))
    console.print(_blocks_table(blocks, n_clients, settings.topology))
    console.print(_memory_table(memory_parts(blocks, weights_bytes, settings, n_clients)))
    console.print(_rounds_line(blocks, settings, rounds) + "\n")
    if data is not None:
        console.print(_data_table(data))
    console.print("dry run: nothing was trained")


def _method_table(settings: Settings, n_clients: int, n_blocks: int) -> Table:
    table = _plain_table("method")
    delay = settings.delay_steps
    rounds = delay / settings.local_steps
    hidden = "blocking" if delay == 0 else f"{rounds:g} round{'' if rounds == 1 else 's'} behind"
    table.add_row("clients", str(n_clients))
    table.add_row("blocks", str(n_blocks))
    table.add_row("local steps", f"{settings.local_steps} optimizer steps a round")
    table.add_row("delay", f"{delay} optimizer steps ({hidden})")
    for name in ("block_order", "topology", "server_optimizer", "in_flight_value", "seed"):
        table.add_row(name.replace("_", " "), str(getattr(settings, name)))
    return table


def _blocks_table(blocks: Sequence[Block], n_clients: int, topology: str) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("block")
    for heading in ("parameters", "MB", *(f"MB up / down: {role}" for role in round_traffic(1, n_clients, topology))):
        table.add_column(heading, justify="right")
    for block in blocks:
        traffic = round_traffic(block.numel, n_clients, topology).values()
        rates = [f"{_mb(t.upload_bytes)} / {_mb(t.download_bytes)}" for t in traffic]
        table.add_row(block.name, f"{block.numel:,}", _mb(block.numel * WIRE_BYTES), *rates)
    total = sum(block.numel for block in blocks)
    title = "blocks, and the megabytes that a client sends and receives in a round that trains them"
    return Group(title, table, f"{len(blocks)} blocks, {total:,} parameters, {_mb(total * WIRE_BYTES)} MB as float32")


def _memory_table(parts: dict[str, tuple[str, int]]) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("for")
    table.add_column("where")
    table.add_column("MB", justify="right")
    for purpose, (where, size_bytes) in parts.items():
        table.add_row(purpose, where, _mb(size_bytes))
    for place in ("device", "host"):
        table.add_row("together", place, _mb(sum(size for where, size in parts.values() if where.startswith(place))))
    return Group("memory of a client in a round of the largest block, without activations", table)


def _rounds_line(blocks: Sequence[Block], settings: Settings, rounds: int) -> str:
    order = (block_of_round(settings.block_order, len(blocks), t, settings.seed) for t in range(rounds))
    return f"first {rounds} rounds train: " + ", ".join(blocks[index].name for index in order)


def _data_table(data: dict[str, Any]) -> Table:
    table = _plain_table("data")
    for name, value in data.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        table.add_row(name.replace("_", " "), str(value))
    return table


def _plain_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold")
    table.add_column()
    return table


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / MEGABYTE:,.2f}"
