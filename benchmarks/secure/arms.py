"""What is compared: the options of each arm, and what a site needs in addition for secure sums."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.secure.federation import FILE_NAME, site_name
from lightning_parablock.settings import SecureAggregation

ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "int8": {"compression": "int8"},
    "bf16": {"compression": "bf16"},
    "secure, 1 byte": {"bytes_per_value": 1},
    "secure, 2 bytes": {"bytes_per_value": 2},
}
"""Name -> options of ParaBlockStrategy, or of SecureAggregation."""
BASELINES = {"secure, 1 byte": "int8", "secure, 2 bytes": "bf16"}
"""Secure sums of a width, and the codec with as many bytes per value."""
SITES = 3
"""The fewest that may have a secure sum."""


def bytes_per_value(arm: str) -> int | None:
    """B of an arm with secure sums; None for another arm."""
    return ARMS[arm].get("bytes_per_value")


def options_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The strategy's options in this process: those of the plan's ``arm`` and ``strategy``.

    With secure sums they name this rank's site and the federation in the plan's ``folder``.
    """
    arm, given = plan["arm"], dict(plan["strategy"])
    width = bytes_per_value(arm)
    if width is None:
        return given | ARMS[arm]
    folder, site = Path(plan["folder"]), site_name(int(os.environ["RANK"]))
    names = {"site": site, "keys": str(folder / site), "federation": str(folder / FILE_NAME)}
    return given | names | {"aggregation": SecureAggregation(width)}
