"""Colours of blocks and waits, shared by ``timeline.png`` and the report page."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#aec7e8",
           "#ffbb78", "#98df8a", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5")  # fmt: skip
"""Without reds and greys, which mark waits."""

EXPOSED_COLOUR, SLOWER_COLOUR, SUBMITTED_COLOUR = "#d62728", "#7f7f7f", "#d9d9d9"
"""Colours of waits: client idle for the exchange, client idle for a slower client, delta waiting for other clients."""

GAP_COLOUR = "#f0e6e6"
"""Colour of a time in which a site of an elastic run was no member."""

_HUES = (0.08, 0.85)
"""Range of hues for models with more blocks than colours: from orange to violet, without red."""


def block_colours(blocks: Iterable[str]) -> dict[str, str]:
    """Colour of each block as ``#rrggbb``, in the natural order of the block names."""
    names = sorted(set(blocks), key=natural)
    few = len(names) <= len(COLOURS)
    return {name: COLOURS[i] if few else _one_of_many(i, len(names)) for i, name in enumerate(names)}


def legend_blocks(colours: dict[str, str]) -> list[str]:
    """Blocks named in a legend: all of them, or the first and the last where all would fill the picture."""
    names = list(colours)
    return names if len(names) <= len(COLOURS) else [names[0], names[-1]]


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``layers.9`` before ``layers.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _one_of_many(index: int, n: int) -> str:
    """Colour by position in the model; neighbours also differ in lightness."""
    low, high = _HUES
    rgb = colorsys.hls_to_rgb(low + (high - low) * index / (n - 1), (0.42, 0.62)[index % 2], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
