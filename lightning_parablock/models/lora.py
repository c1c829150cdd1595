"""LoRA adapters (arXiv 2106.09685) in a transformers model, created by peft: training and merging of the adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.names import ALL_LINEAR

_NAME = "default"
"""Name that peft gives to an adapter without a name."""
_ADAPTER, _BASE = ".lora_", ".base_layer"
"""Parts of parameter names: of an adapter's parameters, and of the weight it adapts."""


@dataclass(frozen=True)
class Adapters:
    """Adapters of a model: each adds (alpha / rank) B A, with A (rank, in) random and B (out, rank) initially zero.

    Args:
        rank: Rank of A and B; 0 for no adapters.
        alpha: Scale; None is twice the rank.
        targets: "all-linear" (every linear layer but the head), a list of the last parts of the layers' names, or one
            regular expression for whole names; as peft's ``target_modules``.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    rank: int = 0
    alpha: float | None = None
    targets: str | list[str] = ALL_LINEAR

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigurationError(f"lora_rank must be a whole number >= 0, 0 for no adapters, got {self.rank}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ConfigurationError(f"lora_alpha must be a finite number > 0, got {self.alpha}")
        if not self.targets:
            raise ConfigurationError(f"lora_targets names no layers; leave it out, or say {ALL_LINEAR!r}")

    @classmethod
    def of(cls, hyperparameters: Mapping[str, Any]) -> Adapters:
        """Adapters of a CausalLM with these hyperparameters."""
        given = {name: hyperparameters.get(f"lora_{name}") for name in ("rank", "alpha", "targets")}
        return cls(**{name: value for name, value in given.items() if value is not None})


def add_adapters(network: PreTrainedModel, adapters: Adapters) -> None:
    """Add the adapters to the network and freeze everything else; does nothing if the rank is 0.

    A is drawn from torch's global generator: clients with the same seed draw the same A.

    Raises:
        ConfigurationError: no layer's name matches ``targets``, or a layer has tied weights or is of a kind that peft
            cannot adapt.
    """
    if adapters.rank == 0:
        return
    import peft  # late: most models have no adapters, and the import takes a second

    alpha = 2 * adapters.rank if adapters.alpha is None else adapters.alpha
    chosen: Any = peft.LoraConfig(r=adapters.rank, lora_alpha=cast(int, alpha), target_modules=adapters.targets)
    try:
        network.add_adapter(chosen)
    except ValueError as error:
        reason = str(error).partition(". Please")[0].rstrip(".")
        raise ConfigurationError(
            f"lora_targets={adapters.targets!r} does not fit the model: {reason}; say {ALL_LINEAR!r} or give a list "
            f"of names, such as {_linear_layers(network)}"
        ) from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(_ADAPTER in name)
    _refuse_tied(network)


def without_adapters(network: PreTrainedModel) -> PreTrainedModel:
    """The same model with its adapters merged into the weights; the network itself if it has no adapters."""
    if not _adapted(network):
        return network
    kind: Any = type(network)
    return kind.from_pretrained(None, config=network.config, state_dict=merged_state(network), dtype=network.dtype)


def merged_state(network: PreTrainedModel) -> dict[str, Tensor]:
    """State of the model without adapters; only the adapted weights are new tensors, all others are the network's."""
    state = {name.replace(_BASE, ""): value for name, value in network.state_dict().items() if _ADAPTER not in name}
    with torch.no_grad():
        for name, layer in _adapted(network).items():
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(_NAME)
    return state


def _adapted(network: PreTrainedModel) -> dict[str, Any]:
    """Layers with adapters, by their names in the model without adapters."""
    return {name: layer for name, layer in network.named_modules() if hasattr(layer, "lora_A")}


def _refuse_tied(network: PreTrainedModel) -> None:
    """Refuse adapters of layers with tied weights: merging one would change the other layer as well."""
    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    for name, layer in _adapted(network).items():
        if uses[id(layer.get_base_layer().weight)] > 1:
            raise ConfigurationError(f"lora_targets matches {name}, whose weights another layer shares; leave it out")


def _linear_layers(network: PreTrainedModel) -> list[str]:
    layers = (name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in layers})
