"""Where a site's trainer is at the first step of a round: what a site that joins at that round continues from.

Captured at each site when the first batch of a round begins: validation and the end of an epoch, if there were any,
are over. Lightning's loops, schedulers and callbacks stand at the same place at all sites. What is each site's own
stays its own: its data, its checkpoints, its random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.lightning_private.epoch_metrics import (
    expect_open_metrics,
    join_open_metrics,
    open_metrics,
)
from lightning_parablock.lightning_private.round_start import progress_before_batch, start_before_batch
from lightning_parablock.loading.fit_loaders import FitLoaders
from lightning_parablock.system.payloads import from_bytes, to_bytes
from lightning_parablock.system.reading import reading

_WHAT = "the trainer's state at the start of a round"
_KINDS: dict[str, type] = {
    **dict.fromkeys(("progress", "callbacks", "callback_metrics", "open_metrics", "buffers"), dict),
    **dict.fromkeys(("lr_schedulers", "optimizers"), list),
}


def capture_round_start(trainer: Trainer, module: LightningModule, *, tells_values: bool = True) -> bytes:
    """The state, in the form that other sites take.

    Args:
        trainer: The trainer, at the start of a batch.
        module: Its module.
        tells_values: Whether values of metrics are in it that may be this site's own. Without them, a callback of a
            site that joins finds none until the site has logged some.

    Raises:
        ConfigurationError: a callback or a scheduler keeps something that cannot be sent; names it.
    """
    configs, metrics = trainer.lr_scheduler_configs, open_metrics(trainer)
    return to_bytes(
        {
            "progress": progress_before_batch(trainer),
            "lr_schedulers": [config.scheduler.state_dict() for config in configs],
            "optimizers": [[_values(group) for group in one.param_groups] for one in trainer.optimizers],
            "callbacks": {one.state_key: state for one in _callbacks(trainer) if (state := one.state_dict())},
            "callback_metrics": dict(trainer.callback_metrics) if tells_values else {},
            "open_metrics": metrics if tells_values else {**metrics, "values": {}},
            "buffers": {name: buffer.detach() for name, buffer in _buffers(module)},
        },
        _WHAT,
    )


def saved_apart(trainer: Trainer, states: dict[str, Any], *, is_own: bool) -> dict[str, Any]:
    """Those of a checkpoint's states of callbacks that :func:`apply_round_start` does not apply.

    The others are older there than in the checkpoint: of the start of the round in which it was saved.

    Args:
        trainer: The trainer, whose callbacks are to be restored.
        states: The states by the callbacks' keys.
        is_own: Whether this site has saved them, so that its callbacks know the files that they have kept.
    """
    elsewhere = {one.state_key for one in _callbacks(trainer)}
    if not is_own:
        elsewhere |= {one.state_key for one in trainer.checkpoint_callbacks}
    return {key: state for key, state in states.items() if key not in elsewhere}


@torch.no_grad()
def apply_round_start(
    trainer: Trainer, module: LightningModule, loaders: FitLoaders, data: bytes, *, is_founding: bool
) -> Callable[[], None]:
    """Let a fit that is about to begin do so where another site's trainer was; before its first batch is fetched.

    Args:
        trainer: The trainer, in ``on_train_start``.
        module: Its module.
        loaders: Its loaders: their own batches up to that place are skipped.
        data: From :func:`capture_round_start`.
        is_founding: Whether all sites begin like this one.

    Returns:
        What remains to be done when the first batch has come.

    Raises:
        ConfigurationError: this site has other schedulers, optimizers or callbacks.
    """
    state = _read_state(data)
    _refuse_differences(trainer, state)
    epoch, batch = start_before_batch(trainer, state["progress"])
    loaders.begin_at(epoch, batch)
    for config, values in zip(trainer.lr_scheduler_configs, state["lr_schedulers"], strict=True):
        config.scheduler.load_state_dict(values)
    for optimizer, groups in zip(trainer.optimizers, state["optimizers"], strict=True):
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)
    for callback in _callbacks(trainer):
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    trainer.callback_metrics.update(state["callback_metrics"])
    expect_open_metrics(trainer)
    for name, buffer in _buffers(module):
        buffer.copy_(state["buffers"][name])
    return partial(join_open_metrics, trainer, module, state["open_metrics"], alike=is_founding)


def _read_state(data: bytes) -> dict[str, Any]:
    state = from_bytes(data, _WHAT)
    with reading(_WHAT):
        for name, kind in _KINDS.items():
            if type(state[name]) is not kind:
                raise TypeError(f"its {name!r} is no {kind.__name__}")
    return state


def _refuse_differences(trainer: Trainer, state: dict[str, Any]) -> None:
    own = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
    groups = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
    if len(own) != len(state["lr_schedulers"]) or groups != [len(group) for group in state["optimizers"]]:
        raise ConfigurationError(
            f"this site has the learning rate schedulers {own} and {groups} groups of parameters, and the others have "
            f"{len(state['lr_schedulers'])} schedulers and {[len(group) for group in state['optimizers']]} groups; "
            "make configure_optimizers the same everywhere"
        )


def _callbacks(trainer: Trainer) -> Iterator[Callback]:
    """Those whose state is the same at all sites: what has been saved is each site's own."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (one for one in callbacks if not isinstance(one, Checkpoint))


def _values(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of a group of parameters, such as its learning rate."""
    return {name: value for name, value in group.items() if name != "params"}


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that belong to the model, as a state dict has them."""
    kept = module.state_dict().keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in kept)
