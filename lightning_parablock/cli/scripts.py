"""``lightning-parablock train.py ...``: runs a script that knows nothing of this package, and brings its strategies."""

from __future__ import annotations

import contextlib
import re
import runpy
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_parablock.checks import closest
from lightning_parablock.cli.spellings import expand_argv, expand_config
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.exit_codes import FAILED, INTERRUPTED


def run_script(path: Path, args: Sequence[str]) -> int:
    """Run the script as ``python path args`` would and return its exit code.

    The strategies are known by name, as the import of this package brings them. A LightningCLI in the script also takes
    ``--strategy``, its options and the presets. An error of the script shows the script's own traceback.

    Raises:
        ConfigurationError: there is no such file.
    """
    if not path.is_file():
        raise ConfigurationError(f"script {str(path)!r} does not exist{_hint(path)}")
    _teach_strategies()
    sys.argv[:] = [str(path), *args]
    if not sys.flags.safe_path:
        sys.path[0] = str(path.resolve().parent)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return _exit_code(end)
    except BaseException as error:
        shown = error.with_traceback(_own_traceback(error, str(path)))
        sys.excepthook(type(shown), shown, shown.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
    return 0


def _teach_strategies() -> None:
    """Let every LightningCLI of this process read the command line as ours does."""
    parse = LightningCLI.parse_arguments

    def parse_arguments(self: LightningCLI, parser: LightningArgumentParser, args: ArgsType) -> None:
        try:
            if args is None:
                sys.argv[1:] = expand_argv(sys.argv[1:], own_help=False)
            elif isinstance(args, list):
                args = expand_argv(args, own_help=False)
        except ConfigurationError as error:
            parser.error(str(error), error)
        with _short_spellings():
            parse(self, parser, args)

    LightningCLI.parse_arguments = parse_arguments


@contextlib.contextmanager
def _short_spellings() -> Generator[None]:
    """YAML files may name presets as ours do, and a strategy's options without a strategy are explained."""
    read, fail = LightningArgumentParser.parse_string, LightningArgumentParser.error

    def parse_string(self: LightningArgumentParser, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Any:
        try:
            content = expand_config(content)
        except ConfigurationError as error:
            fail(self, f"{path}: {error}" if path else str(error), error)
        return read(self, content, path, *args, **kwargs)

    def error(self: LightningArgumentParser, message: str, ex: Exception | None = None) -> NoReturn:
        fail(self, message + _hint_at_strategy(message), ex)
        raise AssertionError("a parser's error returns")

    replaced: dict[str, Any] = {"parse_string": parse_string, "error": error}
    own = {name: vars(LightningArgumentParser)[name] for name in replaced if name in vars(LightningArgumentParser)}
    for name, function in replaced.items():
        setattr(LightningArgumentParser, name, function)
    try:
        yield
    finally:
        for name in replaced:
            if name in own:
                setattr(LightningArgumentParser, name, own[name])
            else:
                delattr(LightningArgumentParser, name)


def _hint_at_strategy(message: str) -> str:
    named = re.search(r"Expected a dot import path string: (\S+)(?s:.*)NestedArg\(key='([^']+)'", message)
    if named is None or "trainer.strategy" not in message:
        return ""
    return (
        f"\nThe strategy {named[1]!r} is a plain name and takes no options. Name one of this package before them, such "
        f"as --strategy parablock --strategy.{named[2]} ..., or give a class path."
    )


def _own_traceback(error: BaseException, path: str) -> Any:
    """The traceback from the script's first frame on; none where it cannot even be parsed."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename != path:
        frame = frame.tb_next
    return frame


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    sys.stderr.write(f"{end.code}\n")
    return FAILED


def _hint(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    close = closest(path.name, names)
    return f"; did you mean {str(path.parent / close)!r}?" if close else ""
