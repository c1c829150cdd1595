"""Lightning's argument parser with the package's short spellings and with errors of one line."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_parablock.cli_errors import explain
from lightning_parablock.cli_flags import expand_config
from lightning_parablock.cli_options import known_options
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.settings import Compression, ServerOptimizer

# Both are frozen dataclasses, whose subclasses jsonargparse accepts only where told so.
set_parsing_settings(subclasses_enabled=[Compression, ServerOptimizer])

USAGE_EXIT_CODE = 2


class ParaBlockArgumentParser(LightningArgumentParser):
    """Reads presets in YAML files; at a mistake prints one line with the nearest right option, and exits with 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation is most often a typing error, and one that reads well today may turn ambiguous tomorrow.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.commands: list[LightningArgumentParser] = []

    @override
    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Namespace:  # pyright: ignore
        try:
            content = expand_config(content)
        except ConfigurationError as error:
            self.error(f"{path}: {error}" if path else str(error), error)
        return super().parse_string(content, path, *args, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside the parser, for the options of one class: the outer one reports
            super().error(message, ex)
        known = isinstance(ex, ConfigurationError)
        sys.stderr.write(f"error: {message if known else explain(message, self._options())}\n")
        sys.exit(USAGE_EXIT_CODE)

    def _options(self) -> list[str]:
        return [name for parser in self.commands or [self] for name in known_options(parser)]
