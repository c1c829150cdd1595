"""Parsers with errors of one line, that name the nearest right option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings
from typing_extensions import override

from lightning_parablock.cli.errors import explain
from lightning_parablock.cli.option_names import known_options, written_names
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.settings import Aggregation, Compression, ServerOptimizer
from lightning_parablock.system.exit_codes import USAGE

# Both are frozen dataclasses, whose subclasses jsonargparse accepts only where told so.
set_parsing_settings(subclasses_enabled=[Aggregation, Compression, ServerOptimizer])


class CommandParser(ArgumentParser):
    """At a mistake prints one line with the nearest right option, and exits with 2.

    Attributes:
        commands: The parsers of its commands; empty where it has none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation is most often a typing error, and one that reads well today may turn ambiguous tomorrow.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.commands: list[ArgumentParser] = []

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser, for the options of one class: the outer one reports
            super().error(message, ex)
        known = isinstance(ex, ConfigurationError)
        sys.stderr.write(f"error: {message if known else explain(message, self._options(), written_names(self))}\n")
        sys.exit(USAGE)

    def _options(self) -> list[str]:
        parsers: Sequence[ArgumentParser] = self.commands or [self]
        return [name for parser in parsers for name in known_options(parser)]
