"""Lightning's argument parser with the package's short spellings and with errors of one line."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.spellings import expand_config
from lightning_parablock.errors import ConfigurationError


class ParaBlockArgumentParser(CommandParser, LightningArgumentParser):
    """Reads presets in YAML files."""

    @override
    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Namespace:  # pyright: ignore
        try:
            content = expand_config(content)
        except ConfigurationError as error:
            self.error(f"{path}: {error}" if path else str(error), error)
        return super().parse_string(content, path, *args, **kwargs)
