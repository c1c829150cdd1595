"""One rank of ``lightning-parablock plan --probe`` with a short probe, which may fail as the last options say."""

from __future__ import annotations

import os
import sys

from lightning_parablock.cli import main
from lightning_parablock.cli.commands import probe
from lightning_parablock.models import speed


def run(words: list[str]) -> int:
    here = os.environ["RANK"]
    probe.BUDGET_S = 0.0
    if words[-2:] == ["--no-memory-on", here]:
        speed._free_bytes = lambda device: 0
    if words[-2:] == ["--lost", here]:
        speed._free_bytes = lambda device: os._exit(9)
    failing = words[-2] in ("--no-memory-on", "--lost")
    return main(["plan", *(words[:-2] if failing else words)])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
