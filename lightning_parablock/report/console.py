"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console


def console(file_width: int = 140) -> Console:
    """Standard output; as wide as a screen where it is a file, whose reader would see tables broken into 80 columns.

    Text is printed as it is: patterns, paths and messages may have brackets, which are no markup.
    """
    found = Console(markup=False, emoji=False)
    return found if found.is_terminal else Console(width=file_width, markup=False, emoji=False)
