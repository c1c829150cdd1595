"""docs/elastic.md has the limits of the code, in its table of time limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_parablock.elastic import attempt, fetching, opening, site
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.collectives import DEFAULT_TIMEOUT
from lightning_parablock.strategy.leaving import BATCH_S, LEAVE_S

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "elastic.md").read_text()
TABLE = PAGE.split("## Time limits")[1].split("\n## ")[0]
ROWS = {cells[0]: cells[1] for cells in (row.strip("| ").split(" | ") for row in TABLE.splitlines() if row[:2] == "| ")}
SETTINGS = ("heartbeat_s", "silence_s", "exchange_timeout_s", "rejoin_timeout_s", "straggler_timeout_s")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_defaults_are_those_of_the_options(name: str) -> None:
    assert ROWS[f"`{name}`"] == f"{getattr(Settings(), name):g} s"


def test_the_fixed_limits_are_those_of_the_code() -> None:
    assert ROWS["connecting"] == f"{opening._CONNECT_S:g} s, or 2 x `silence_s` if that is longer"
    assert ROWS["one answer of a desk"] == f"{attempt._ANSWER_S:g} s"
    assert ROWS["leaving"] == f"{site._LEAVE_S:g} s" == f"{LEAVE_S:g} s"
    assert ROWS["SIGTERM, Ctrl-C"] == f"{BATCH_S:g} s"
    assert ROWS["a silent transfer"] == f"{fetching._SILENT_S:g} s"
    assert ROWS["`timeout`"] == f"{DEFAULT_TIMEOUT.total_seconds():g} s"


def test_the_limits_go_from_short_to_long() -> None:
    seconds = [float(re.findall(r"[0-9.]+", ROWS[f"`{name}`"])[0]) for name in SETTINGS]
    assert seconds == sorted(seconds)
