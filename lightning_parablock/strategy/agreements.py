"""What the ranks agree on bit by bit: the weights they start from, and those they end with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lightning_parablock.blocks.flat import FlatBlocks, hash_tensors
from lightning_parablock.blocks.partition import Block
from lightning_parablock.errors import ConfigurationError, DivergenceError
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.training.outside import OutsideParameters, parameters_outside


def broadcast_model(ranks: RankStrategy, module: nn.Module) -> None:
    """Give every rank rank 0's weights and buffers; they are sent only if some rank has others. Collective."""
    if ranks.is_alone:
        return
    tensors = [*(p.detach() for p in module.parameters()), *module.buffers()]
    if len(set(ranks.gather_objects(hash_tensors(tensors)))) == 1:
        return
    ranks.broadcast_tensors(tensors, "the starting weights")


def refuse_other_outside(ranks: RankStrategy, module: nn.Module, blocks: Iterable[Block]) -> None:
    """Refuse a model whose parameters outside the blocks are not those of the founders of an elastic run; collective.

    A site that joins is sent the blocks and the buffers, and keeps all else: it would train, and save, another model.

    Raises:
        ConfigurationError: names the first parameter that differs.
    """
    own = {name: hash_tensors([value]) for name, value in parameters_outside(module, blocks).items()}
    if not own:
        return
    theirs = ranks.broadcast(own)
    different = [name for name, sha256 in own.items() if theirs[name] != sha256]
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise ConfigurationError(
            f"this site cannot join the run: {different[0]!r}{more}, a parameter in no block, has other values than at "
            "the sites that began the run, and a site that joins is sent the blocks alone; use the same model file, "
            "and seed_everything with the same seed before the model is made, at every site"
        )


def agree_on_weights(ranks: RankStrategy, flat: FlatBlocks) -> str:
    """SHA-256 over all blocks, the same on every rank; collective.

    Raises:
        DivergenceError: the ranks hold different weights; names the first block that differs.
    """
    own = hash_tensors(flat.pack(block) for block in range(len(flat.blocks)))
    if len(set(ranks.gather_objects(own))) > 1:
        _raise_divergence(ranks, flat)
    return own


def changed_outside(ranks: RankStrategy, outside: OutsideParameters) -> dict[str, Tensor]:
    """The parameters in no block that any client has changed, by name; collective."""
    return {} if ranks.is_alone else outside.of_all(ranks.gather_objects(outside.changed()))


def _raise_divergence(ranks: RankStrategy, flat: FlatBlocks) -> None:
    by_rank = ranks.gather_objects([hash_tensors([flat.pack(block)]) for block in range(len(flat.blocks))])
    different = [i for i, hashes in enumerate(zip(*by_rank, strict=True)) if len(set(hashes)) > 1]
    first = different[0]
    who = {ranks.describe(rank): hashes[first][:12] for rank, hashes in enumerate(by_rank)}
    raise DivergenceError(
        f"after the last exchange the clients hold different weights: {who} in block {flat.blocks[first].name!r}, "
        f"the first of {len(different)}; does a hook of the module or of a callback write into parameters that are "
        "not being trained? Make it write into buffers or frozen parameters instead. If there is no such hook, "
        "please report this"
    )
