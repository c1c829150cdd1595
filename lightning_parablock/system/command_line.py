"""The command that started this process, for messages that explain how to continue."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_OWN_NAMES = ("lightning-parablock", "__main__.py")  # the second one with python -m lightning_parablock
_REPLACED = ("--ckpt_path", "--run_dir")
_FRESH = "--strategy.missing_client_state"


def command_to_resume(path: str, *, fresh: bool = False) -> str:
    """The command that resumes this run from a checkpoint, on each machine; a Python call if a script runs it.

    Args:
        path: Path of the checkpoint.
        fresh: Whether the checkpoint has only the weights, so that the clients' own state starts afresh.
    """
    words = sys.argv
    if Path(words[0]).name not in _OWN_NAMES or "fit" not in words:
        strategy = " with the strategy's missing_client_state='fresh'" if fresh else ""
        return f"trainer.fit(..., ckpt_path={path!r}){strategy}"
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    start = "torchrun ... -m lightning_parablock" if by_torchrun else "lightning-parablock"
    own = _without(words[1:], (*_REPLACED, _FRESH) if fresh else _REPLACED)
    return f"{start} {shlex.join([*own, '--ckpt_path', path, *([_FRESH, 'fresh'] if fresh else [])])}"


def _without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    kept, skip = list[str](), False
    for word in words:
        name, has_value, _ = word.partition("=")
        if skip or name in options:
            skip = not skip and not has_value
        else:
            kept.append(word)
    return kept
