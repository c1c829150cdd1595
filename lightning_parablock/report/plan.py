"""Tables of ``lightning-parablock plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from rich import box
from rich.console import Console, Group
from rich.table import Table

from lightning_parablock.models.lora import Adapters
from lightning_parablock.models.names import MODEL_CLASS_PATH
from lightning_parablock.planning.memory import FLOAT_BYTES, MemoryPart, total_bytes
from lightning_parablock.planning.timing import Links
from lightning_parablock.planning.variants import BUSY_SHARE, Variant, Workload, reason
from lightning_parablock.report.dry_run import mb, memory_table, plain_table
from lightning_parablock.settings import option_word
from lightning_parablock.system.units import readable_bps, readable_bytes, readable_s

ROWS = 40
"""Maximum number of blocks listed; with more, the first and the last ones are."""


@dataclass(frozen=True)
class Premises:
    """Premises of a plan, in words.

    Attributes:
        model: Name of the model.
        n_clients: Number of clients.
        links: Links of the clients, and of a star's server.
        links_from: Source of the rates.
        speed_from: Source of the step times.
        step: Tokens, batches and type of the weights of a local step.
        step_batches: Number of batches per local step.
        half: Whether the weights are bfloat16.
        adapters: Adapters of the model, which alone are trained and sent; rank 0 without any.
    """

    model: str
    n_clients: int
    links: Links
    links_from: str
    speed_from: str
    step: str
    step_batches: int
    half: bool
    adapters: Adapters


def print_plan(
    console: Console,
    premises: Premises,
    found: Sequence[Variant],
    chosen: Variant,
) -> None:
    """Print premises, blocks, the variants side by side, and the recommended one's memory and settings."""
    console.print(_premises_table(premises))
    console.print(_blocks_table(chosen.workload))
    console.print(_variants_table(found, chosen))
    if chosen.settings.delay_warmup_rounds:
        console.print(_warm_up_line(chosen) + "\n")
    console.print(memory_table(chosen.memory))
    console.print(f"recommended: {reason(chosen)}\n")
    console.print(settings_yaml(chosen, premises), highlight=False)


def settings_yaml(chosen: Variant, premises: Premises) -> str:
    """The recommended settings as a configuration file for ``fit``."""
    settings = chosen.settings
    blocks = list(settings.blocks) if isinstance(settings.blocks, tuple) else settings.blocks
    strategy = {
        "local_steps": chosen.choice.local_steps,
        "delay_steps": None,
        **({"delay_warmup_rounds": settings.delay_warmup_rounds} if settings.delay_warmup_rounds else {}),
        "blocks": blocks,
        "unmatched": settings.unmatched,
        "block_order": settings.block_order,
        "topology": settings.topology,
        "compression": option_word(settings.compression),
        "aggregation": option_word(settings.aggregation),
        "server_optimizer": option_word(settings.server_optimizer),
        "chunk_bytes": settings.chunk_bytes,
        **({"seed": settings.seed} if settings.seed else {}),
    }
    head = f"# lightning-parablock plan: {reason(chosen)}.\n# For a step of {premises.step}.\n"
    trainer: dict[str, Any] = {"precision": "bf16-true"} if premises.half else {}
    if premises.step_batches > 1:
        trainer["accumulate_grad_batches"] = premises.step_batches
    adapters = {"lora_rank": premises.adapters.rank, "lora_targets": premises.adapters.targets}
    model = {"model": {"class_path": MODEL_CLASS_PATH, "init_args": adapters}} if premises.adapters.rank else {}
    settings_of = {"strategy": strategy, **({"trainer": trainer} if trainer else {}), **model}
    return head + yaml.safe_dump(settings_of, sort_keys=False)


def _warm_up_line(chosen: Variant) -> str:
    rounds = chosen.settings.delay_warmup_rounds
    first = "the first round waits for its exchange" if rounds == 1 else f"the first {rounds} rounds wait for theirs"
    added = f"{readable_s(chosen.warm_up_s)} more in the whole run"
    return f"{first}: {added}, at K = {chosen.settings.local_steps} and with the recommended exchange"


def gb(parts: Sequence[MemoryPart], *, on_device: bool) -> str:
    """Gigabytes of the parts on the device, or in host memory."""
    return f"{total_bytes(parts, on_device=on_device) / 1e9:,.2f}"


def bare_s(seconds: float) -> str:
    """Seconds without their unit, which is in the heading; longer times keep theirs."""
    return readable_s(seconds).removesuffix(" s")


def _premises_table(premises: Premises) -> Table:
    table = plain_table("premises")
    links = readable_bps(premises.links.client_bps)
    if premises.links.server_bps != premises.links.client_bps:
        links += f", of a star's server {readable_bps(premises.links.server_bps)}"
    table.add_row("model", premises.model)
    table.add_row("clients", f"{premises.n_clients:,}")
    table.add_row("links", f"{links} each way ({premises.links_from})")
    table.add_row("a local step", premises.step)
    table.add_row("step times", premises.speed_from)
    return table


def _blocks_table(workload: Workload) -> Group:
    blocks = workload.blocks
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("block")
    for heading in ("parameters", "MB as float32", "s a local step"):
        table.add_column(heading, justify="right")
    left_out = range(ROWS // 2, len(blocks) - ROWS // 2)
    for index, (block, step_s) in enumerate(zip(blocks, workload.step_s, strict=True)):
        if len(blocks) <= ROWS or index not in left_out:
            table.add_row(block.name, f"{block.numel:,}", mb(FLOAT_BYTES * block.numel), bare_s(step_s))
        elif index == left_out[0]:
            table.add_row(f"... {len(left_out)} more", "", "", "")
    total = sum(block.numel for block in blocks)
    weights = readable_bytes(workload.size.weights_bytes)
    return Group(table, f"{len(blocks)} blocks, {total:,} parameters, weights {weights}\n")


def _variants_table(found: Sequence[Variant], chosen: Variant) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("topology")
    table.add_column("compression")
    table.add_column("blocks", justify="right")
    for heading in (
        "MB per round",
        "M s",
        "s per round: blocking",
        "ParaBlock",
        "faster",
        "hidden",
        "utilization",
        "K: all hidden",
        "on average",
        f"{BUSY_SHARE:.0%} utilization",
        "device GB: blocking",
        "ParaBlock",
        "host GB",
    ):
        table.add_column(heading, justify="right")
    for v in found:
        table.add_row(
            v.settings.topology + (" *" if v is chosen else ""),
            option_word(v.settings.compression),
            str(len(v.workload.step_s)),
            mb(v.round_bytes),
            bare_s(v.times.exchange_s),
            bare_s(v.times.blocking_s),
            bare_s(v.times.parablock_s),
            f"{v.times.blocking_s / v.times.parablock_s:.2f}",
            f"{100 * v.times.hidden_share:.0f} %",
            f"{100 * v.times.busy_share:.0f} %",
            f"{v.hiding_steps:,}",
            f"{v.mean_hiding_steps:,}",
            f"{v.busy_steps:,}",
            gb(v.blocking_memory, on_device=True),
            gb(v.memory, on_device=True),
            gb(v.memory, on_device=False),
        )
    steps = found[0].settings.local_steps
    c_s = bare_s(found[0].times.compute_s)
    return Group(
        f"a round of {steps} local steps, C = {c_s} s: MB sent by the busiest client (it receives as many), M the mean "
        "exchange, utilization the share of the time in which clients compute (ParaBlock), K the local steps that hide "
        "the exchange or reach that utilization; memory without activations; * recommended",
        table,
    )
