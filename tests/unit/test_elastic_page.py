"""docs/elastic.md has the limits of the code, in its table of time limits, and its example keeps its own rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lightning_parablock.cli import main
from lightning_parablock.elastic import attempt, fetching, opening, site
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.collectives import DEFAULT_TIMEOUT
from lightning_parablock.strategy.leaving import BATCH_S, LEAVE_S

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "elastic.md").read_text()
TABLE = PAGE.split("## Time limits")[1].split("\n## ")[0]
ROWS = {cells[0]: cells[1] for cells in (row.strip("| ").split(" | ") for row in TABLE.splitlines() if row[:2] == "| ")}
SETTINGS = ("heartbeat_s", "silence_s", "exchange_timeout_s", "rejoin_timeout_s", "straggler_timeout_s")


def test_the_file_of_the_example_is_what_init_writes_and_the_run_never_waits(tmp_path: Path) -> None:
    (words,) = re.findall(r"^lightning-parablock init (.+)$", PAGE, re.MULTILINE)
    assert main(["init", str(tmp_path), *words.split()]) == 0
    text = (tmp_path / "run.yaml").read_text()
    (block,) = re.findall(r"^```yaml\n( +lighthouse: .+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert block in text
    least = int(re.findall(r"min_clients: (\d+)", block)[0])
    members = [names.split(", ") for names in re.findall(r"sites \(([a-z, ]+)\) continue", PAGE)]
    assert len(members) == 4 and all(len(names) >= least for names in members)
    assert {name for names in members for name in names} == set(re.findall(r"--sites (\S+)", words)[0].split(","))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_defaults_are_those_of_the_options(name: str) -> None:
    assert ROWS[f"`{name}`"] == f"{getattr(Settings(), name):g} s"


def test_the_fixed_limits_are_those_of_the_code() -> None:
    assert ROWS["connecting"] == f"{opening._CONNECT_S:g} s, or 2 x `silence_s` if that is longer"
    assert ROWS["one answer of a desk"] == f"{attempt._ANSWER_S:g} s"
    assert ROWS["leaving"] == f"{site.LEAVE_S:g} s" == f"{LEAVE_S:g} s"
    assert ROWS["SIGTERM, Ctrl-C"] == f"{BATCH_S:g} s"
    assert ROWS["a silent transfer"] == f"{fetching._SILENT_S:g} s"
    assert ROWS["`timeout`"] == f"{DEFAULT_TIMEOUT.total_seconds():g} s"


def test_the_limits_go_from_short_to_long() -> None:
    seconds = [float(re.findall(r"[0-9.]+", ROWS[f"`{name}`"])[0]) for name in SETTINGS]
    assert seconds == sorted(seconds)
