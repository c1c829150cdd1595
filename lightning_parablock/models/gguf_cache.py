"""GGUF files, converted once per host to a cached folder that loads in a second (the file itself in half a minute)."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_parablock.errors import ConfigurationError

log = logging.getLogger(__name__)

# Increase it when the contents of converted folders change: old folders are then no longer found.
_FORMAT = 1
_WAIT_LIMIT_S = 900.0


def cache_root() -> Path:
    """Folder of converted models: ``$XDG_CACHE_HOME/lightning-parablock``, or ``~/.cache/lightning-parablock``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lightning-parablock"


def converted_folder(gguf: Path, convert: Callable[[Path, Path], None] | None = None, root: Path | None = None) -> Path:
    """The cached safetensors folder of ``gguf``, converted now if it is missing.

    One process per host converts, under a file lock; the others wait for it. The folder appears whole or not at all.

    Args:
        gguf: Path of the GGUF file.
        convert: ``convert(gguf, folder)`` fills an empty folder; :func:`convert_gguf` by default.
        root: Folder of the cache; :func:`cache_root` by default.

    Raises:
        ConfigurationError: the file is unreadable or not a GGUF file, the cache cannot be written, or another process
            held the lock for more than 900 s.
    """
    root = root or cache_root()
    folder = root / _cache_key(gguf)
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=_WAIT_LIMIT_S):
            if not folder.is_dir():
                _convert_into(gguf, folder, convert or convert_gguf)
    except Timeout as error:
        raise ConfigurationError(
            f"another process has been converting {gguf} for more than {_WAIT_LIMIT_S:.0f} s; if there is none, remove "
            f"{folder}.lock"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the model cache {root} cannot be written: {error}; set XDG_CACHE_HOME to a folder with room for the "
            "converted model (4 bytes a parameter)"
        ) from error
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model of ``gguf``, as float32 safetensors, and its tokenizer to ``folder``.

    Raises:
        ConfigurationError: a package that reads GGUF files is missing, or the file cannot be read.
    """
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"reading {gguf} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    import torch
    import transformers

    hf: Any = transformers  # its annotations are partial
    try:
        model = hf.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = hf.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # the reader raises many kinds of errors on a broken file
        raise ConfigurationError(
            f"{gguf} cannot be read as a GGUF model: {type(error).__name__}: {error}; fetch the file again"
        ) from error
    # save_pretrained refuses a model marked as quantised, although its weights are plain float32 now
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_into(gguf: Path, folder: Path, convert: Callable[[Path, Path], None]) -> None:
    for stale in folder.parent.glob(f"{folder.name}.part-*"):  # left by a process that was killed; we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    log.warning("converting %s to %s, once on this host; this takes about half a minute", gguf.name, folder)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        convert(gguf, part)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cache_key(gguf: Path) -> str:
    try:
        stat = gguf.stat()
    except OSError as error:
        raise ConfigurationError(f"GGUF file {gguf} cannot be read: {error.strerror or error}") from error
    mark = hashlib.sha256(f"{_FORMAT}/{gguf.name}/{stat.st_size}/{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    return f"{gguf.stem}-{mark}"
