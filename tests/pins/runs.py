"""The runs whose bits and files are stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor

from lightning_parablock import Int8, ParaBlockStrategy, ServerNesterov
from tests.pins.toys import LAYERS, Exact, fit

SAVED_AT = 22
"""The step at which :func:`saving_run` saves: in the middle of a round, with exchanges in flight."""

# Powers of two in place of the presets' own factors, and rounds that fit into a run of a test.
_EXACT: dict[str, dict[str, Any]] = {
    "diloco": {"local_steps": 4, "server_optimizer": ServerNesterov(lr=0.5, momentum=0.5)},
}
_LAYER_PATTERNS = [rf"layers\.{index}\." for index in range(LAYERS)]
PRESETS = ("parablock", "fedbcd", "fedavg", "fedcybgd", "diloco")


def preset_bits(name: str, folder: Path) -> str:
    """Checksum of the weights of a short run of two clients under a preset."""
    entry = cast(dict[str, Any], StrategyRegistry[name])
    options: dict[str, Any] = {
        "local_steps": 4,
        "clients": 2,
        "seed": 3,
        **entry["init_params"],
        **_EXACT.get(name, {}),
    }
    return fit(ParaBlockStrategy(**options), folder).weights_sha256


def rich_strategy() -> ParaBlockStrategy:
    """Two clients in turn, with something in every part of the clients' state."""
    return ParaBlockStrategy(
        clients=2,
        local_steps=4,
        delay_steps=6,
        blocks=_LAYER_PATTERNS,
        seed=3,
        server_optimizer=ServerNesterov(lr=0.5, momentum=0.5),
        compression=Int8(group=64),
        block_optimizer_state="keep",
        weighting="samples",
    )


def rich_run(folder: Path, **options: Any) -> str:
    """Checksum of the weights of a run with :func:`rich_strategy`."""
    return fit(rich_strategy(), folder, module=Exact(momentum=0.5), **options).weights_sha256


def saving_run(folder: Path) -> tuple[Path, str]:
    """The same run, which saves a checkpoint in its middle: the file, and the checksum at the end."""
    saving = ModelCheckpoint(folder, every_n_train_steps=SAVED_AT, save_top_k=-1, filename="{step}")
    bits = rich_run(folder, callbacks=[saving], enable_checkpointing=True)
    return folder / f"step={SAVED_AT}.ckpt", bits


def layout_of(checkpoint: Path) -> dict[str, Any]:
    """File names as patterns, what the package adds to the checkpoint, and the sidecar's contents by type."""
    folder = checkpoint.with_name(f"{checkpoint.name}.parablock")
    (sidecar,) = folder.rglob("*.pt")
    entry = torch.load(checkpoint, weights_only=True)["parablock"]
    content = torch.load(sidecar, weights_only=False)
    name = re.sub(r"-[0-9a-f]{8}$", "-<8 hexadecimal digits>", sidecar.parent.name)
    return {
        "sidecar file": f"{checkpoint.name}.parablock/{name}/{sidecar.name}",
        "entry": shape_of(entry),
        "entry settings": entry["settings"],
        "entry values": {name: entry[name] for name in ("format", "blocks", "round", "weights_sha256", "sites")},
        "sidecar": sorted(content),
        "sidecar of Lightning": sorted(content["lightning"]),
        "sidecar of the package": shape_of(content["own"]),
    }


def shape_of(value: Any) -> Any:
    """A value with types in place of what they hold: keys, lengths, dtypes and shapes stay."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        return {f"{key!r}": shape_of(part) for key, part in cast(dict[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        parts = [shape_of(part) for part in cast(list[Any], value)]
        if len(parts) > 8 and all(part == parts[0] for part in parts):
            parts = [parts[0], f"{len(parts)} of them"]
        return {type(value).__name__: parts}
    if type(value).__module__ == "numpy":
        return f"numpy.{type(value).__name__}"
    return type(value).__name__
