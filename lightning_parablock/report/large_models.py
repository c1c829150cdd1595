"""Resource needs of models with 8 and 70 billion parameters and 10 to 1,000 clients, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from lightning_parablock.planning.timing import Links
from lightning_parablock.planning.variants import Variant, Workload, variant
from lightning_parablock.report.dry_run import mb
from lightning_parablock.report.plan import bare_s, gb
from lightning_parablock.settings import Compression, Int4, NoCompression, Settings, Topology

N_CLIENTS = (10, 100, 1000)
HEADINGS = (
    "clients",
    "device GB",
    "host GB",
    "MB per round",
    "C s",
    "M s: star",
    "sharded",
    "int4",
    "K: sharded",
    "int4",
    "s per round, int4: blocking",
    "ParaBlock",
)


def rows_of(model: str, workload: Workload, settings: Settings, links: Links) -> list[list[str]]:
    """One row per number of clients; topology, compression and blocks (by layers) replace those of the settings."""

    def of(n_clients: int, topology: Topology, compression: Compression) -> Variant:
        varied = dataclasses.replace(settings, blocks="layers", memory=None, topology=topology, compression=compression)
        return variant(workload, n_clients, varied, links)

    return [
        _row(
            f"{model}, {n:,}",
            of(n, "sharded", NoCompression()),
            of(n, "sharded", Int4()),
            of(n, "star", NoCompression()),
        )
        for n in N_CLIENTS
    ]


def large_models_table(rows: Sequence[Sequence[str]], local_steps: int) -> Group:
    """Table of the rows of all models."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model, clients")
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return Group(
        f"what Llama-3 shapes would take, at the same rates: bfloat16 weights, one block per layer, {local_steps} "
        "local steps; memory and MB are those of sharded without compression, K the local steps that hide the exchange",
        table,
    )


def _row(name: str, plain: Variant, small: Variant, star: Variant) -> list[str]:
    return [
        name,
        gb(plain.memory, on_device=True),
        gb(plain.memory, on_device=False),
        mb(plain.round_bytes),
        bare_s(plain.times.compute_s),
        bare_s(star.times.exchange_s),
        bare_s(plain.times.exchange_s),
        bare_s(small.times.exchange_s),
        f"{plain.hiding_steps:,}",
        f"{small.hiding_steps:,}",
        bare_s(small.times.blocking_s),
        bare_s(small.times.parablock_s),
    ]
