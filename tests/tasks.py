"""Tiny training tasks that every test shares: fast, and the same bits on each run with ``torch.set_num_threads(1)``.

A batch is a pure function of (seed, client, step), so that a task gives the same losses in one process and in many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

VOCABULARY, WIDTH, HEADS, LENGTH, LAYERS = 32, 16, 2, 8, 3
POOL_BATCHES = 23  # batches of a client before they come round again; prime, so that no K makes a short period
BATCH_SAMPLES = 2

Batch = tuple[Tensor, Tensor]


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, LENGTH, WIDTH) to the same shape."""
        samples, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(samples, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(samples, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LayerWithoutAttention(nn.Module):
    """A third of the operations of a transformer layer, and a block of about as many parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, LENGTH, WIDTH) to the same shape."""
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class TinyTransformer(nn.Module):
    """A causal language model of some 8,000 parameters; with ``tied`` the head's weight is the embedding's."""

    def __init__(self, *, tied: bool = False, layer: Callable[[], nn.Module] = Layer) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.position.weight, std=0.3)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (samples, LENGTH) to logits (samples, LENGTH, VOCABULARY)."""
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Task:
    """A model, a loss and each client's batches; ``block_names`` is one natural partition of its parameters."""

    name: str
    make_model: Callable[[], nn.Module]  # the same initial weights on every call
    loss: Callable[[nn.Module, Batch], Tensor]
    draw_batch: Callable[[torch.Generator, int], Batch]  # (generator, client)
    block_names: tuple[tuple[str, ...], ...]
    seed: int = 0
    same_data: bool = False

    def batch(self, client: int, step: int) -> Batch:
        """Return what ``client`` sees in its optimizer step ``step``, counted from 0 across rounds; do not write it."""
        pool = _pool(self.draw_batch, self.seed, 0 if self.same_data else client)
        return pool[step % POOL_BATCHES]

    def loss_fn(self, model: nn.Module, client: int, step: int) -> Tensor:
        """Return the scalar loss of that batch, as the oracle wants it."""
        return self.loss(model, self.batch(client, step))

    def with_same_data(self) -> Task:
        """Return this task with the batches of client 0 on every client."""
        return replace(self, same_data=True)

    def as_one_block(self) -> tuple[tuple[str, ...], ...]:
        """Return a partition with everything in one block."""
        return (tuple(name for block in self.block_names for name in block),)


@dataclass(frozen=True)
class PoisonedTask(Task):
    """A task in which the loss of some (client, step) is not a number."""

    poisoned: frozenset[tuple[int, int]] = frozenset()

    @override
    def loss_fn(self, model: nn.Module, client: int, step: int) -> Tensor:
        loss = super().loss_fn(model, client, step)
        return loss * float("nan") if (client, step) in self.poisoned else loss


def poisoned_task(task: Task, *poisoned: tuple[int, int]) -> PoisonedTask:
    """Return the task with a loss that is not a number at each (client, step), and the same otherwise."""
    same = {field.name: getattr(task, field.name) for field in fields(Task)}
    return PoisonedTask(**same, poisoned=frozenset(poisoned))


@functools.cache
@torch.inference_mode(False)  # the first to ask may be a validation, and its batches could not be trained on later
def _pool(draw_batch: Callable[[torch.Generator, int], Batch], seed: int, client: int) -> tuple[Batch, ...]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + client)
    return tuple(draw_batch(generator, client) for _ in range(POOL_BATCHES))


def seeded(build: Callable[[], nn.Module], seed: int) -> Callable[[], nn.Module]:
    """Return a factory of that model which gives the same initial weights on every call."""

    def make_model() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    return make_model


def _blocks(model: nn.Module, *groups: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Name the parameters whose names start with one of a group's prefixes; every parameter in exactly one group."""
    names = [name for name, _ in model.named_parameters()]
    blocks = tuple(tuple(name for name in names if name.startswith(group)) for group in groups)
    assert sorted(names) == sorted(name for block in blocks for name in block)
    return blocks


def draw_tokens(generator: torch.Generator, client: int) -> Batch:
    """Draw counting sequences whose stride depends on the client: learnable, and different from client to client."""
    start = torch.randint(VOCABULARY, (BATCH_SAMPLES, 1), generator=generator)
    stride = 1 + client + torch.randint(2, (BATCH_SAMPLES, 1), generator=generator)
    tokens = (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the next token."""
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


@functools.cache
def transformer_task(*, tied: bool = False, seed: int = 0) -> Task:
    """Return the small causal transformer; its blocks: embeddings, each layer, the head side (with its norm)."""
    return _token_task("transformer", Layer, tied=tied, seed=seed)


@functools.cache
def token_task(*, tied: bool = False, seed: int = 0) -> Task:
    """Return the same without attention, for runs whose question is not the model: a step takes a third as long."""
    return _token_task("language model", LayerWithoutAttention, tied=tied, seed=seed)


def _token_task(name: str, layer: Callable[[], nn.Module], *, tied: bool, seed: int) -> Task:
    make_model = seeded(functools.partial(TinyTransformer, tied=tied, layer=layer), seed)
    layers = [(f"layers.{index}.",) for index in range(LAYERS)]
    head = ("norm.",) if tied else ("norm.", "head.")
    blocks = _blocks(make_model(), ("embed.", "position."), *layers, head)
    return Task(f"tied {name}" if tied else name, make_model, token_loss, draw_tokens, blocks, seed)


def _draw_regression(generator: torch.Generator, client: int) -> Batch:
    inputs = torch.randn(4 * BATCH_SAMPLES, 4, generator=generator)
    return inputs, torch.sin(inputs.sum(1, keepdim=True) + 0.5 * client)


def _squared_error(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


@functools.cache
def mlp_task(*, seed: int = 0) -> Task:
    """Return a smooth regression by three linear layers with tanh between them, one block each."""
    make_model = seeded(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)), seed
    )
    blocks = _blocks(make_model(), ("0.",), ("2.",), ("4.",))
    return Task("mlp", make_model, _squared_error, _draw_regression, blocks, seed)


@functools.cache
def wide_task(*, seed: int = 0) -> Task:
    """Return a regression whose first two matrices have one side of 1,500: their factors fill several chunks."""
    make_model = seeded(
        lambda: nn.Sequential(nn.Linear(4, 1500), nn.Tanh(), nn.Linear(1500, 8), nn.Tanh(), nn.Linear(8, 1)), seed
    )
    blocks = _blocks(make_model(), ("0.",), ("2.",), ("4.",))
    return Task("wide mlp", make_model, _squared_error, _draw_regression, blocks, seed)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Plain SGD: no state."""
    return torch.optim.SGD(parameters, lr=0.1)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW whose eps is large enough that rounding stays rounding: for comparisons to a tolerance."""
    return torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3)


def adamw_default(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with PyTorch's eps: one ulp may flip its first step, so only for comparisons of bits."""
    return torch.optim.AdamW(parameters, lr=1e-2)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "adamw_default": adamw_default,
}


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Require the same names and, under each, the same bits; the message names every parameter that differs."""
    assert actual.keys() == expected.keys()
    different = [
        f"{name}: {int((actual[name] != expected[name]).sum())} of {expected[name].numel()} elements, "
        f"by up to {float((actual[name] - expected[name]).abs().max()):.3g}"
        for name in expected
        if not torch.equal(actual[name], expected[name])
    ]
    assert not different, "bits differ in " + "; ".join(different)


def relative_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of an element over its parameter's largest magnitude; NaN if anything is NaN."""
    assert actual.keys() == expected.keys()
    ratios = [
        (actual[name] - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-30) for name in expected
    ]
    return float(torch.stack(ratios).max())
