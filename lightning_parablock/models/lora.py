"""LoRA adapters (arXiv 2106.09685) in a transformers model, made by peft: only they train, and they can be merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.names import ALL_LINEAR

_NAME = "default"
"""What peft calls an adapter that nobody named."""
_ADAPTER, _BASE = ".lora_", ".base_layer"
"""In the names of parameters: those of an adapter, and the weight beside it."""


@dataclass(frozen=True)
class Adapters:
    """Which adapters a model gets: each adds (alpha / rank) B A, A (rank, in) drawn, B (out, rank) zero at first.

    Args:
        rank: Of A and B; 0 for no adapters.
        alpha: Scale; None is twice the rank.
        targets: "all-linear" (every linear layer but the head), the last parts of the names of the layers, or one
            regular expression that matches their whole names; as peft's ``target_modules``.

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
        """Those that a CausalLM with these options has."""
        given = {name: hyperparameters.get(f"lora_{name}") for name in ("rank", "alpha", "targets")}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def as_options(self) -> dict[str, Any]:
        """Those options of CausalLM."""
        return {f"lora_{name}": value for name, value in asdict(self).items()}


def add_adapters(network: PreTrainedModel, adapters: Adapters) -> None:
    """Put the adapters into the network and freeze all the rest; nothing where the rank is 0.

    A is drawn from torch's global generator: clients with one seed draw the same.

    Raises:
        ConfigurationError: no layer has a name that ``targets`` says, or one has tied weights or is of a kind that peft
            cannot adapt.
    """
    if adapters.rank == 0:
        return
    import peft  # late: most models have no adapters, and it takes a second

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
    """The same model without adapters, what they add merged into its weights; the network itself if it has none."""
    if not _adapted(network):
        return network
    kind: Any = type(network)
    return kind.from_pretrained(None, config=network.config, state_dict=merged_state(network), dtype=network.dtype)


def merged_state(network: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the model without adapters; the network's own tensors but for the weights that they add to."""
    state = {name.replace(_BASE, ""): value for name, value in network.state_dict().items() if _ADAPTER not in name}
    with torch.no_grad():
        for name, layer in _adapted(network).items():
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(_NAME)
    return state


def _adapted(network: PreTrainedModel) -> dict[str, Any]:
    """The layers with adapters, by the names they have in the model without."""
    return {name: layer for name, layer in network.named_modules() if hasattr(layer, "lora_A")}


def _refuse_tied(network: PreTrainedModel) -> None:
    """Merged, an adapter of one layer would change the other as well."""
    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    for name, layer in _adapted(network).items():
        if uses[id(layer.get_base_layer().weight)] > 1:
            raise ConfigurationError(f"lora_targets matches {name}, whose weights another layer shares; leave it out")


def _linear_layers(network: PreTrainedModel) -> list[str]:
    layers = (name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in layers})
