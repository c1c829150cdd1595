"""Puts the help texts of the command line into a page: a line ``{{ help COMMAND }}`` becomes the command's --help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
_MARKER = re.compile(r"^{{ help (?P<command>[\w ]*?) ?}}$", re.MULTILINE)
_WIDTH = 100
"""Characters per line."""
_LIMIT_S = 120.0


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the markers of a page."""
    return _MARKER.sub(lambda marker: f"```text\n{_help(marker['command'])}```", markdown)


def _help(command: str) -> str:
    line = [sys.executable, "-m", "lightning_parablock", *command.split(), "--help"]
    environment = {**os.environ, "COLUMNS": str(_WIDTH), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode != 0:
        raise PluginError(f"{' '.join(line[1:])} failed: {done.stderr}")
    return done.stdout
