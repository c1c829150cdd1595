"""The code blocks of a page of the documentation, for tests that run them as they are written."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<language>\w+) (?P<label>[^\n]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def labelled_blocks(page: Path) -> dict[str, str]:
    """The text of each fenced block that has a label after its language, by label: ```` ```sh site a ````."""
    return {match["label"]: match["text"] for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))}
