"""Writes the tables of ``docs/planner.md`` on large models behind slow links: which settings reach 95 % utilization.

``make horizon`` runs it; a test compares the page with what it would write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from lightning_parablock.blocks.partition import partition
from lightning_parablock.cli.commands.plan_options import PlanOptions
from lightning_parablock.models.flops import layers_flops, step_flops
from lightning_parablock.models.shapes import SHAPES, config_of, module_without_weights
from lightning_parablock.planning.memory import model_size
from lightning_parablock.planning.timing import NOMINAL_GOODPUT, Links
from lightning_parablock.planning.variants import Workload, variant
from lightning_parablock.settings import COMPRESSIONS, MAX_AUTO_STEPS, Settings
from lightning_parablock.system.units import parse_bps, parse_flop_per_s, readable_bps, readable_bytes, readable_s

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planner.md"
FIRST, LAST = "<!-- Written by `make horizon`. -->", "<!-- End of what `make horizon` writes. -->"
RATES = ("100mbit", "20mbit")
CUTS = ("layers", 8)
_OPTIONS = PlanOptions(model="llama3-8b", dtype="bfloat16", clients=10, rate=RATES[0])
"""The planner's defaults otherwise: the page says how to print a row."""


def written(page: str) -> str:
    """The text of the page with new tables."""
    before, after = page.partition(FIRST)[0], page.partition(LAST)[2]
    return f"{before}{FIRST}\n\n{tables()}\n{LAST}{after}"


@cache
def tables() -> str:
    """The tables of all shapes, as Markdown."""
    return "\n".join(line for shape in SHAPES for line in _table(shape))


def _table(shape: str) -> Iterator[str]:
    cuts = [_workload(shape, blocks) for blocks in CUTS]
    yield f"{shape}: a local step takes {readable_s(_mean_s(cuts[0]))}."
    yield ""
    columns = ["sent per round", "K", "round", "pass"]
    named = [f"`{blocks}`: {columns[0]}" if blocks == "layers" else f"{blocks} blocks: {columns[0]}" for blocks in CUTS]
    yield _row(["link", "compression", *(cell for first in named for cell in (first, *columns[1:]))])
    yield _row(["---", "---", *["---:"] * len(columns) * len(cuts)])
    for rate in RATES:
        for word, compression in COMPRESSIONS.items():
            settings = replace(_OPTIONS.settings, compression=compression())
            cells = [cell for cut in cuts for cell in _cells(cut, settings, _links(rate))]
            yield _row([readable_bps(parse_bps("rate", rate)), word, *cells])
    yield ""


def _workload(shape: str, blocks: str | int) -> Workload:
    config, step = config_of(shape), (_OPTIONS.step_sequences, _OPTIONS.sequence_length)
    module = module_without_weights(config, _OPTIONS.dtype)
    cut = partition(module, blocks)
    flops = layers_flops(config, *step) if blocks == "layers" else step_flops(module, cut, *step)
    pace = parse_flop_per_s("flop_rate", _OPTIONS.flop_rate)
    return Workload(model_size(module, cut), tuple(each / pace for each in flops))


def _links(rate: str) -> Links:
    rate_bps = NOMINAL_GOODPUT * parse_bps("rate", rate)
    return Links(rate_bps, rate_bps)


def _cells(workload: Workload, settings: Settings, links: Links) -> list[str]:
    steps = variant(workload, _OPTIONS.n_clients, settings, links).busy_steps
    planned = variant(workload, _OPTIONS.n_clients, replace(settings, local_steps=steps, delay_steps=steps), links)
    round_s = planned.times.parablock_s
    text = f"{steps:,}" if steps <= MAX_AUTO_STEPS else f"({steps:,})"
    return [readable_bytes(planned.round_bytes), text, readable_s(round_s), readable_s(len(workload.step_s) * round_s)]


def _mean_s(workload: Workload) -> float:
    return sum(workload.step_s) / len(workload.step_s)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
