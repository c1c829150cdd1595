"""The form of the documentation: lines, tables, and the README's length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launch import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINE_CHARACTERS = 120
CELL_CHARACTERS = 160
"""A cell with more is a paragraph, which belongs in a list or a section."""


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines that are neither code nor a line that cannot be wrapped, with their numbers."""
    in_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith("    ") and not re.match(r"#|!?\[[^\]]*\]\(\S*\)$", line):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_are_wrapped_and_tables_have_no_paragraphs(page: Path) -> None:
    for number, line in prose(page):
        if line.startswith("|"):
            longest = max(len(cell.strip()) for cell in line.split("|"))
            assert longest <= CELL_CHARACTERS, f"{page.name}:{number}: a cell of {longest} characters"
        else:
            assert len(line) <= LINE_CHARACTERS, f"{page.name}:{number}: a line of {len(line)} characters"


def test_the_readme_is_short_and_has_its_two_set_up_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("\n") < 120
    assert re.search(r"^    make demo\b", readme, re.MULTILINE) and re.search(r"^    make test\b", readme, re.MULTILINE)
