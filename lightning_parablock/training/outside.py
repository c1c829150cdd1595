"""Parameters in no block: nothing trains or exchanges them, but a module may write into them (an EMA teacher).

They are then each client's own, as buffers are. Anything else that makes them train is refused.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import is_finite
from lightning_parablock.blocks.partition import Block
from lightning_parablock.errors import ConfigurationError, NonFiniteError

log = logging.getLogger(__name__)


@torch.no_grad()
def fingerprint(tensor: Tensor) -> int:
    """A number, for this process, that changes with any word of 8 bytes, and with several but for one case in 2**64.

    Several times faster than a cryptographic hash, and computed where the tensor is: a frozen model may have gigabytes.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = (data[:whole] if data.data_ptr() % 8 == 0 else data[:whole].clone()).view(torch.int64)
    keys, total = _keys(words.device), 0
    for piece in words.split(keys.numel()):
        total = hash((total, int((piece * keys[: piece.numel()]).sum())))
    return hash((total, bytes(data[whole:].tolist())))


@functools.cache
def _keys(device: torch.device) -> Tensor:
    """Fixed odd factors: multiplied by them, modulo 2**64, no two values of a word are the same."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (1 << 16,), generator=generator) | 1).to(device)


def kinds_outside(module: nn.Module, blocks: Iterable[Block]) -> dict[str, str]:
    """Type and shape of each parameter in no block, printable: what clients must have in common."""
    outside = parameters_outside(module, blocks)
    return {f"parameter {name}": f"{value.dtype} {tuple(value.shape)}" for name, value in outside.items()}


def parameters_outside(module: nn.Module, blocks: Iterable[Block]) -> dict[str, nn.Parameter]:
    """The parameters in no block, by name, in the module's order."""
    in_blocks = {name for block in blocks for name in block.parameter_names}
    return {name: value for name, value in module.named_parameters() if name not in in_blocks}


class OutsideParameters:
    """The parameters of a module that are in no block, and which of them have changed since training began.

    Args:
        module: As training begins, the same on all ranks.
        blocks: The partition.
        takes_turns: Whether several clients of this rank share them.
        is_alone: Whether there is no other rank that could have others.
        is_averaged: Whether the committed model shows the clients' mean of them.
    """

    def __init__(
        self, module: nn.Module, blocks: Iterable[Block], *, takes_turns: bool, is_alone: bool, is_averaged: bool
    ) -> None:
        self._takes_turns, self._is_alone, self._is_averaged = takes_turns, is_alone, is_averaged
        self._is_checked = self._is_told = False
        self._all = list(module.named_parameters())
        self._block_of = {name: block.name for block in blocks for name in block.parameter_names}
        self._mine = {name: parameter for name, parameter in self._all if name not in self._block_of}
        self._start = {name: fingerprint(parameter) for name, parameter in self._mine.items()}
        self._changed = set[str]()

    def changed(self) -> list[str]:
        """Names of those that have other bits than at the start, or have had once, on this rank."""
        same = [name for name in self._mine if name not in self._changed]
        self._changed |= {name for name in same if fingerprint(self._mine[name]) != self._start[name]}
        return [name for name in self._mine if name in self._changed]

    def of_all(self, changed: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """Those that have changed on any rank, given :meth:`changed` of every rank."""
        anywhere = {name for names in changed for name in names}
        self._tell([name for name in self._mine if name in anywhere])
        return {name: parameter for name, parameter in self._mine.items() if name in anywhere}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over a client's own from a checkpoint."""
        for name, value in values.items():
            self._mine[name].copy_(value)
        self._changed |= values.keys()

    def check_turn(self, place: str, *, discarded: bool) -> None:
        """After a turn. Changes are looked for after the first one alone: hashing takes a while where much is frozen.

        Args:
            place: Round and block of the turn, for messages.
            discarded: Whether its delta was not finite, so that it has no part in the mean.

        Raises:
            ConfigurationError: one has been changed, and clients that take turns would share it.
            NonFiniteError: the turn is discarded, and what it has written here cannot be taken back.
        """
        if discarded:
            self._refuse_nonfinite(place)
        if self._is_checked or (self._is_alone and not self._takes_turns):
            return
        self._is_checked = True
        changed = self.changed()
        if changed and self._takes_turns:
            raise ConfigurationError(
                f"{place}: {changed[0]!r}, a parameter in no block, has been changed, and clients that take turns on "
                "one model would share it; register it as a buffer, which follows its client"
            )
        self._tell(changed)

    def _tell(self, changed: Sequence[str]) -> None:
        if not changed or self._is_told:
            return
        self._is_told = True
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        committed = (
            "the committed model shows the clients' mean"
            if self._is_averaged
            else "checkpoints have the first client's; buffers='average' shows the clients' mean"
        )
        what = (
            "parablock: the frozen parameter %s%s is changed in training: each client keeps its own, as of buffers; %s"
        )
        log.warning(what, changed[0], more, committed)

    def _refuse_nonfinite(self, place: str) -> None:
        for name, parameter in self._mine.items():
            if parameter.is_floating_point() and not is_finite(parameter):
                raise NonFiniteError(
                    f"{place}: the round is left out since its delta is not finite, but {name!r}, a parameter in no "
                    "block, is not finite, too, and cannot be put back; register it as a buffer"
                )

    def refuse_flags(self, active: Iterable[nn.Parameter], place: str) -> None:
        """Refuse another choice of what trains than the block of the turn.

        Args:
            active: The parameters of the block.
            place: For the message.

        Raises:
            ConfigurationError: a parameter outside the block requires a gradient, or one in it does not.
        """
        chosen = {id(parameter) for parameter in active}
        for name, parameter in self._all:
            if parameter.requires_grad != (id(parameter) in chosen):
                self._refuse_flag(name, parameter, place)

    def _refuse_flag(self, name: str, parameter: nn.Parameter, place: str) -> None:
        block = self._block_of.get(name)
        where = f"a parameter of block {block!r}" if block is not None else "a parameter in no block"
        raise ConfigurationError(
            f"{place}: requires_grad of {name!r}, {where}, has become {parameter.requires_grad} during training. The "
            "strategy decides in which round a parameter trains, and clients would hold different weights: freeze and "
            "unfreeze before fit, such as in __init__ or configure_model, and not in a hook"
        )
