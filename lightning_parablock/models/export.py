"""Export of a model to a folder that transformers loads: configuration, safetensors, tokenizer; all or nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.loading import load_tokenizer, network_of_architecture, resolve_model
from lightning_parablock.models.lora import Adapters, add_adapters, without_adapters
from lightning_parablock.system.places import refuse_unwritable

_OWN = "network."
"""Attribute of a CausalLM that holds its model."""


def export_checkpoint(ckpt_path: Path, output: Path, *, overwrite: bool = False, tokenizer: bool = True) -> None:
    """Export the model of a Lightning checkpoint of :class:`CausalLM`, with adapters merged into its weights.

    Args:
        ckpt_path: Path of the checkpoint.
        output: Folder to create.
        overwrite: Replace ``output`` if it exists.
        tokenizer: Add the tokenizer of the model named in the checkpoint.

    Raises:
        ConfigurationError: ``output`` is not empty, the checkpoint cannot be read or is not that of a CausalLM, or its
            model's tokenizer cannot be found.
    """
    refuse_contents(output, overwrite)
    checkpoint = read_checkpoint(ckpt_path)
    hyperparameters: dict[str, Any] = checkpoint["hyper_parameters"]
    found = _tokenizer_of(hyperparameters) if tokenizer else None
    network = network_of_architecture(hyperparameters["architecture"], None)
    add_adapters(network, Adapters.of(hyperparameters))
    state = {n.removeprefix(_OWN): t for n, t in checkpoint["state_dict"].items() if n.startswith(_OWN)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigurationError(f"the weights in {ckpt_path} do not fit its architecture: {error}") from error
    write_model_folder(output, network, found, overwrite=overwrite)


def write_model_folder(output: Path, network: PreTrainedModel, tokenizer: Any, *, overwrite: bool = False) -> None:
    """Write the folder under a temporary name and rename it into place when it is complete.

    Args:
        output: Folder to create.
        network: The model; tied weights are written once, LoRA adapters are merged into the written weights.
        tokenizer: A transformers tokenizer, or None for none.
        overwrite: Replace ``output`` if it exists.

    Raises:
        ConfigurationError: ``output`` is not empty.
        OSError: the folder could not be written; an earlier ``output`` is unchanged.
    """
    output = output.resolve()
    refuse_contents(output, overwrite)
    temporary, old = (output.with_name(f".{output.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        without_adapters(network).save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if output.exists():
            output.rename(old)
        temporary.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def refuse_contents(output: Path, overwrite: bool) -> None:
    """Refuse an output that is a file, cannot be written, or is a folder whose contents must not be replaced.

    Raises:
        ConfigurationError: ``output`` is refused.
    """
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"{output} is a file; name a folder for the model")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigurationError(f"folder {output} is not empty; name another one, or say overwrite to replace it")
    refuse_unwritable(output.parent, f"the folder of the model {output}: folder")


def the_network(module: torch.nn.Module) -> PreTrainedModel:
    """The one transformers model that is an attribute of the module.

    Raises:
        ConfigurationError: the module has no transformers model, or several.
    """
    found = {name: child for name, child in module.named_children() if isinstance(child, PreTrainedModel)}
    if len(found) != 1:
        listed = f"several: {', '.join(found)}" if found else "none"
        raise ConfigurationError(
            f"HuggingFaceExport needs a LightningModule with exactly one transformers model as an attribute; "
            f"{type(module).__name__} has {listed}"
        )
    return next(iter(found.values()))


def the_tokenizer(module: torch.nn.Module, data: object) -> Any:
    """The tokenizer of a CausalLM, else the attribute ``tokenizer`` of the module or its data module; None without one.

    Raises:
        ConfigurationError: the tokenizer of a CausalLM cannot be found.
    """
    from lightning_parablock.models.causal_lm import CausalLM  # late: the command works without Lightning

    owners: list[Any] = [module] if isinstance(module, CausalLM) else [module, data]
    return next((owner.tokenizer for owner in owners if hasattr(owner, "tokenizer")), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of :class:`CausalLM`, whose ``hyper_parameters`` include its architecture.

    Raises:
        ConfigurationError: the checkpoint does not exist, cannot be read, or was saved by another module.
    """
    if not path.is_file():
        raise ConfigurationError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling arbitrary bytes may raise anything
        raise ConfigurationError(f"{path} cannot be read as a checkpoint: {type(error).__name__}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ConfigurationError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    hyperparameters = cast(dict[str, Any], checkpoint.get("hyper_parameters") or {})
    if not {"architecture", "model"} <= hyperparameters.keys():
        raise ConfigurationError(
            f"{path} was not saved by CausalLM: it does not tell its model's architecture. For other modules put the "
            "callback HuggingFaceExport into the training, or measure in a script of your own"
        )
    return cast(dict[str, Any], checkpoint)


def _tokenizer_of(hyperparameters: dict[str, Any]) -> Any:
    try:
        return load_tokenizer(resolve_model(hyperparameters["model"], hyperparameters.get("gguf_file")))
    except ConfigurationError as error:
        raise ConfigurationError(f"no tokenizer: {error}; --no-tokenizer makes the folder without one") from error
