"""Which parameters form which block: every trainable parameter in exactly one, tied ones once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from lightning_parablock.checks import nearest
from lightning_parablock.errors import CallOrderError, ConfigurationError
from lightning_parablock.settings import AUTO, Unmatched

TINY_SHARE = 0.05
"""With "layers", a block with less than this share of the mean block's parameters joins its neighbour."""


@dataclass(frozen=True)
class Block:
    """A run of parameters that is trained, sent and merged as one.

    Attributes:
        name: Readable and unique in its partition, e.g. ``"layers.3"`` or the pattern that formed it.
        parameter_names: As ``named_parameters()`` spells them, in its order; a tied parameter by its first name.
        numel: Number of scalars over all parameters.
        shapes: Of the parameters; empty where they are not known.
    """

    name: str
    parameter_names: tuple[str, ...]
    numel: int
    shapes: tuple[tuple[int, ...], ...] = field(default=(), compare=False)


def partition(module: nn.Module, blocks: str | int | Sequence[str], unmatched: Unmatched = "error") -> list[Block]:
    """Cut the trainable parameters of ``module`` into blocks.

    Args:
        module: Only parameters with ``requires_grad`` take part.
        blocks: "layers", a number of byte-balanced runs of neighbours, or regular expressions, one per block.
        unmatched: For patterns: whether a trainable parameter that none matches is an error or stays frozen.

    Raises:
        ConfigurationError: nothing is trainable, there are no repeated layers, a pattern matches nothing, two patterns
            match one parameter, a parameter is unmatched, or there are fewer parameters than blocks.
    """
    sizes = _trainable_sizes(module)
    if isinstance(blocks, int):
        return _with_shapes(module, _balanced(module, sizes, blocks))
    if isinstance(blocks, str):
        if blocks == AUTO:
            raise CallOrderError("how many blocks 'auto' means must be decided before the model is cut into them")
        return _with_shapes(module, _join_tiny(_layers_or_error(module, sizes)))
    return _with_shapes(module, _by_pattern(module, sizes, blocks, unmatched))


def balanced_partitions(module: nn.Module) -> Iterator[list[Block]]:
    """What :func:`partition` makes of the numbers 1, 2, 3, ..., up to one block per trainable parameter; lazily.

    Raises:
        ConfigurationError: nothing is trainable.
    """
    sizes = _trainable_sizes(module)
    made = 0
    for units in _units(module, sizes):
        for bounds in itertools.islice(_balanced_bounds([unit.numel for unit in units]), made, None):
            yield _with_shapes(module, _cut(units, bounds, sizes))
            made += 1


def finest_partition(module: nn.Module) -> list[Block]:
    """One block per trainable parameter.

    Raises:
        ConfigurationError: nothing is trainable.
    """
    return _with_shapes(module, _units(module, _trainable_sizes(module))[-1])


def _trainable_sizes(module: nn.Module) -> dict[str, int]:
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not sizes:
        raise ConfigurationError("the model has no trainable parameter (requires_grad is False on all of them)")
    return sizes


def _with_shapes(module: nn.Module, blocks: Iterable[Block]) -> list[Block]:
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    return [replace(block, shapes=tuple(shapes[name] for name in block.parameter_names)) for block in blocks]


def _block(name: str, parameter_names: Iterable[str], sizes: dict[str, int]) -> Block:
    names = tuple(parameter_names)
    return Block(name, names, sum(sizes[n] for n in names))


# --- "layers" ---------------------------------------------------------------------------------------------------------


def _layers_or_error(module: nn.Module, sizes: dict[str, int]) -> list[Block]:
    layers = _layers(module, sizes)
    if not layers:
        raise ConfigurationError(
            "blocks='layers' found no repeated layers among the trainable parameters; give blocks=<number> or a list "
            f"of patterns over parameter names, such as {list(sizes)[:3]}"
        )
    return layers


def _layers(module: nn.Module, sizes: dict[str, int]) -> list[Block]:
    """One block a repeated layer; what stands before the first, between stacks and after the last is a block too."""
    owner = _layer_of(module, sizes)
    if not owner:
        return []
    runs = [(layer, list(names)) for layer, names in itertools.groupby(sizes, key=owner.get)]
    shown = _without_common_prefix(set(owner.values()))
    members: dict[str, list[str]] = {}
    for position, (layer, names) in enumerate(runs):
        members.setdefault(shown[layer] if layer else _side(position, len(runs)), []).extend(names)
    return [_block(name, names, sizes) for name, names in members.items()]


def _side(position: int, n_runs: int) -> str:
    return "embedding" if position == 0 else "head" if position == n_runs - 1 else f"between.{position}"


def _layer_of(module: nn.Module, sizes: dict[str, int]) -> dict[str, str]:
    """Parameter name -> full name of its layer, for the parameters that belong to one."""
    prefixes = _layer_prefixes(module, sizes)
    listed = {name: prefix for prefix in prefixes for name in sizes if name.startswith(prefix + ".")}
    return _recurrent_layers(module, sizes) | listed


def _recurrent_layers(module: nn.Module, sizes: dict[str, int]) -> dict[str, str]:
    """The layers of an LSTM, GRU or RNN are no modules: only the names of its parameters tell them apart."""
    layer_of: dict[str, str] = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.RNNBase):
            for own, _ in child.named_parameters(name, recurse=False):
                layer = re.search(r"_(l\d+)(_reverse)?$", own)
                if layer and own in sizes:
                    layer_of[own] = f"{name}.{layer[1]}".removeprefix(".")
    return layer_of


def _layer_prefixes(module: nn.Module, sizes: dict[str, int]) -> list[str]:
    """Names of the outermost repeated layers: children of one class, at least two, of a list or sequence.

    Layers that are frozen count as repetitions, but only those that train are returned.
    """
    prefixes: list[str] = []
    for name, child in module.named_modules():
        inside = any(name == p or name.startswith(p + ".") for p in prefixes)
        if inside or not isinstance(child, (nn.ModuleList, nn.Sequential)):
            continue
        layers = {f"{name}.{key}" if name else key: layer for key, layer in child.named_children()}
        layers = {prefix: layer for prefix, layer in layers.items() if any(True for _ in layer.parameters())}
        if len(layers) >= 2 and len({type(layer) for layer in layers.values()}) == 1:
            prefixes += [p for p in layers if any(n.startswith(p + ".") for n in sizes)]
    return prefixes


def _without_common_prefix(layers: Collection[str]) -> dict[str, str]:
    """Shorten ``model.model.layers.3`` to ``layers.3``, or to as many more parts as keep every layer apart."""
    for n_parts in itertools.count(2):
        short = {layer: ".".join(layer.split(".")[-n_parts:]) for layer in layers}
        if len(set(short.values())) == len(layers):
            return short
    raise AssertionError("the full names differ")


def _join_tiny(blocks: list[Block]) -> list[Block]:
    """Merge each tiny block into the block before it (the first one into the block after it)."""
    floor = TINY_SHARE * sum(b.numel for b in blocks) / len(blocks)
    joined: list[Block] = []
    for block in blocks:
        if joined and (block.numel < floor or joined[-1].numel < floor):
            joined[-1] = _merge(joined[-1], block)
        else:
            joined.append(block)
    return joined


def _merge(first: Block, second: Block) -> Block:
    names = first.parameter_names + second.parameter_names
    return Block(f"{first.name}+{second.name}", names, first.numel + second.numel)


# --- a number of blocks -----------------------------------------------------------------------------------------------


def _balanced(module: nn.Module, sizes: dict[str, int], n_blocks: int) -> list[Block]:
    """Byte-balanced runs of neighbouring layers, or of neighbouring parameters where there are too few layers."""
    units = next((units for units in _units(module, sizes) if len(units) >= n_blocks), None)
    if units is None:
        raise ConfigurationError(f"blocks={n_blocks}, but the model has only {len(sizes)} trainable parameters")
    bounds = next(itertools.islice(_balanced_bounds([unit.numel for unit in units]), n_blocks - 1, None))
    return _cut(units, bounds, sizes)


def _units(module: nn.Module, sizes: dict[str, int]) -> list[list[Block]]:
    """What runs are made of: the layers, and for more runs than there are layers the parameters."""
    return [_layers(module, sizes), [_block(name, [name], sizes) for name in sizes]]


def _cut(units: Sequence[Block], bounds: Sequence[int], sizes: dict[str, int]) -> list[Block]:
    return [_run(units[low:high], sizes) for low, high in itertools.pairwise(bounds)]


def _run(units: Sequence[Block], sizes: dict[str, int]) -> Block:
    name = units[0].name if len(units) == 1 else f"{units[0].name}..{units[-1].name}"
    return _block(name, (n for unit in units for n in unit.parameter_names), sizes)


def _balanced_bounds(weights: Sequence[int]) -> Iterator[list[int]]:
    """For 1, 2, 3, ... runs: cut points of the runs of least sum of squared weights.

    By dynamic programming; the first of equals wins.
    """
    total = [0, *itertools.accumulate(weights)]
    n = len(weights)
    cost: list[int] = [w * w for w in total]
    cuts: list[list[int]] = []
    for run in range(1, n + 1):
        if run > 1:
            best = [0] * (n + 1)
            new_cost = list(cost)
            for end in range(run, n + 1):
                choices = ((cost[c] + (total[end] - total[c]) ** 2, c) for c in range(run - 1, end))
                new_cost[end], best[end] = min(choices)
            cost = new_cost
            cuts.append(best)
        bounds = [n]
        for best in reversed(cuts):
            bounds.append(best[bounds[-1]])
        yield [0, *reversed(bounds)]


# --- patterns ---------------------------------------------------------------------------------------------------------


def _by_pattern(module: nn.Module, sizes: dict[str, int], patterns: Sequence[str], unmatched: Unmatched) -> list[Block]:
    twice = [p for index, p in enumerate(patterns) if p in patterns[:index]]
    if twice:
        raise ConfigurationError(
            f"the pattern {twice[0]!r} of blocks is given twice; every parameter belongs to one block"
        )
    aliases = _aliases(module, sizes)
    matched = {p: [n for n in sizes if any(re.search(p, alias) for alias in aliases[n])] for p in patterns}
    for pattern, names in matched.items():
        if not names:
            raise ConfigurationError(_matches_nothing(module, pattern, sizes))
    _refuse_overlap(matched)
    left = [name for name in sizes if not any(name in names for names in matched.values())]
    if left and unmatched == "error":
        raise ConfigurationError(
            f"{len(left)} trainable parameters match no pattern of blocks, the first is {left[0]!r}; add a pattern, "
            "or set unmatched='freeze' to leave them as they are"
        )
    return [_block(pattern, names, sizes) for pattern, names in matched.items()]


def _aliases(module: nn.Module, sizes: dict[str, int]) -> dict[str, list[str]]:
    """All names of each trainable parameter: a tied one has several, and a pattern may use any of them."""
    first_name = {id(parameter): name for name, parameter in module.named_parameters()}
    aliases: dict[str, list[str]] = {name: [] for name in sizes}
    for alias, parameter in module.named_parameters(remove_duplicate=False):
        name = first_name[id(parameter)]
        if name in aliases:
            aliases[name].append(alias)
    return aliases


def _matches_nothing(module: nn.Module, pattern: str, sizes: dict[str, int]) -> str:
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad and re.search(pattern, n)]
    if frozen:
        return f"the pattern {pattern!r} of blocks matches only frozen parameters (requires_grad=False): {frozen[0]!r}"
    modules = sorted({part for name in sizes for part in name.split(".")[:-1] if not part.isdigit()})
    word = max(re.findall(r"[A-Za-z_]+", pattern), key=len, default=pattern)
    return (
        f"the pattern {pattern!r} of blocks matches no parameter; names look like {list(sizes)[len(sizes) // 2]!r}; "
        f"for {word!r}: {nearest(word, modules)}"
    )


def _refuse_overlap(matched: dict[str, list[str]]) -> None:
    for (first, names), (second, others) in itertools.combinations(matched.items(), 2):
        both = [name for name in names if name in set(others)]
        if both:
            raise ConfigurationError(
                f"the patterns {first!r} and {second!r} of blocks both match {both[0]!r}"
                + (f" and {len(both) - 1} more" if len(both) > 1 else "")
                + "; every parameter belongs to exactly one block"
            )
