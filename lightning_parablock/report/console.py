"""The console on which tables are printed."""

from __future__ import annotations

from rich.console import Console


def console(file_width: int = 140) -> Console:
    """Console on standard output; ``file_width`` columns wide for a file, where tables would be broken at 80 columns.

    Text is printed literally: brackets in patterns, paths and messages are not markup.
    """
    found = Console(markup=False, emoji=False)
    return found if found.is_terminal else Console(width=file_width, markup=False, emoji=False)
