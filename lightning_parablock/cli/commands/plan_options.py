"""The options of ``lightning-parablock plan``: each on one field of a record that is checked before a model is loaded.

Neither torch nor transformers are imported here, so that help and mistyped options take no time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from lightning_parablock.checks import require
from lightning_parablock.launching.launched import launched_ranks
from lightning_parablock.models.names import ALL_LINEAR, Dtype
from lightning_parablock.options import OptionGroup, option, record
from lightning_parablock.settings import Settings, Unmatched
from lightning_parablock.system.places import refuse_unwritable_file
from lightning_parablock.system.units import parse_bps, parse_bytes, parse_flop_per_s

PlannedOrder = Literal["sequential", "reverse", "shuffle", "random", "importance"]
"""The block orders with one exchange per round."""


def _check_whole(name: str, value: Any) -> None:
    require(value is None or value >= 1, f"{name} must be a whole number >= 1, got {value}")


def _check_step(name: str, value: Any) -> None:
    require(value is None or 0 < value < float("inf"), f"{name} must be > 0, got {value}")


def _check_rate(name: str, value: Any) -> None:
    if value is not None:
        parse_bps(name, value)


def _check_memory(name: str, value: Any) -> None:
    if value is not None:
        parse_bytes(name, value)


def _check_flop_rate(name: str, value: Any) -> None:
    parse_flop_per_s(name, value)


def _check_output(name: str, value: Any) -> None:
    if value is not None:
        refuse_unwritable_file(Path(value).expanduser(), name)


@record
class PlanOptions(OptionGroup):
    """What to plan for."""

    model: str = option(
        help="Hub id, folder, .gguf file, package:NAME, or a known shape: llama3-8b, llama3-70b. Only its "
        "configuration is read."
    )
    gguf_file: str | None = option(
        default=None, help="Name of the GGUF file in a folder or hub id that also holds other weights."
    )
    layers: int | None = option(
        default=None, check=_check_whole, help="Number of layers to keep, the first ones; null keeps all."
    )
    clients: int | None = option(
        default=None,
        check=_check_whole,
        help="Number of clients. Null: the processes that torchrun started, otherwise 2.",
    )
    rate: str | None = option(
        default=None,
        check=_check_rate,
        help="Rate of a client's link in each direction, such as 100mbit or 1gbit, or bits per second. Required, "
        "unless --probe measures it between the processes that torchrun started.",
    )
    server_rate: str | None = option(
        default=None,
        check=_check_rate,
        help="Rate of the link of the client that serves a star, in the same units; null means rate.",
    )
    step_s: float | None = option(
        default=None,
        check=_check_step,
        help="Seconds per optimizer step of the slowest client, on an average block.",
    )
    probe: bool = option(
        default=False,
        help="Measure steps on this machine for about 20 seconds, with random weights and as many layers as fit. Under "
        "torchrun, measure on the machines of all processes, and their links, too.",
    )
    flop_rate: str = option(
        default="100tflops",
        check=_check_flop_rate,
        help="Floating-point operations per second that a client reaches, such as 50gflops or 100tflops. Step times "
        "are estimated from it if neither step_s nor probe is given.",
    )
    tokens_per_step: int = option(
        default=16_384,
        check=_check_whole,
        help="Tokens per optimizer step and client. A step takes as many batches as they need "
        "(accumulate_grad_batches of the Trainer, which the recommended settings contain).",
    )
    batch_size: int = option(default=1, check=_check_whole, help="Sequences per batch.")
    sequence_length: int = option(default=1024, check=_check_whole, help="Number of tokens per sequence.")
    dtype: Dtype = option(
        default="float32",
        help="Type of the weights. With bfloat16, the block in training has a float32 master copy.",
    )
    lora_rank: int = option(
        default=0,
        help="Rank of LoRA adapters; 0 for none. With adapters, only they are trained and sent; as in fit.",
    )
    lora_targets: str | list[str] = option(default=ALL_LINEAR, help="Layers that get adapters, as in fit.")
    local_steps: int = option(
        default=16,
        help="Local steps per round (K) in the table. More are recommended only if no compression hides the exchange "
        "behind so many.",
    )
    delay_warmup_rounds: int = option(
        default=0,
        help="Number of rounds at the start of the run that wait for their exchange, as in fit. The plan says how many "
        "seconds they add.",
    )
    blocks: Literal["layers", "auto"] | int | list[str] = option(
        default="layers",
        help='How the model is cut: "layers", "auto", a number of blocks, or a list of regular expressions; as in fit. '
        'With "auto" the fewest blocks that fit into memory.',
    )
    memory: str | None = option(
        default=None,
        check=_check_memory,
        help='Memory of a client\'s device for blocks "auto", without activations, such as 24gb; null means three '
        "quarters of what this machine's device has free.",
    )
    device: Literal["cuda", "cpu"] | None = option(
        default=None,
        help='Device of the clients: "cuda" or "cpu". Null means that of this machine. On "cpu" what is kept in host '
        "memory counts as well.",
    )
    unmatched: Unmatched = option(
        default="error",
        help='Treatment of parameters that no pattern of blocks matches: "error" or "freeze".',
    )
    block_order: PlannedOrder = option(
        default="shuffle",
        help='Which block each round trains: "sequential", "reverse", "shuffle", "random" or "importance".',
    )
    server_optimizer: Literal["sgd", "nesterov"] = option(
        default="sgd", help='Server optimizer: "sgd", or "nesterov", which keeps a velocity in the server\'s memory.'
    )
    chunk_bytes: int = option(
        default=1 << 20, help="Payload of one message before compression, in bytes, a multiple of 4096."
    )
    seed: int = option(default=0, help="Random seed of the block order, as in fit.")
    output: str | None = option(
        default=None,
        check=_check_output,
        help="File for the recommended settings, which fit takes with --config; null only prints them.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.probe and self.step_s), "step_s is given and probe would measure it; leave one out")
        measures_links = self.probe and launched_ranks() > 1
        require(
            self.rate is not None or measures_links,
            "rate is missing: give --rate 100mbit, or start plan --probe under torchrun, which measures it",
        )
        _ = self.settings, self.n_clients  # checked before the model is looked up

    @property
    def settings(self) -> Settings:
        """The method's settings; topology and compression vary in the plan."""
        return Settings(
            local_steps=self.local_steps,
            delay_steps=self.local_steps,
            delay_warmup_rounds=self.delay_warmup_rounds,
            blocks=self.blocks,
            memory=self.memory,
            unmatched=self.unmatched,
            block_order=self.block_order,
            server_optimizer=self.server_optimizer,
            chunk_bytes=self.chunk_bytes,
            seed=self.seed,
        )

    @property
    def step_batches(self) -> int:
        """Batches per optimizer step: as many as it takes to train on ``tokens_per_step`` tokens."""
        return math.ceil(self.tokens_per_step / (self.batch_size * self.sequence_length))

    @property
    def step_sequences(self) -> int:
        """Sequences per optimizer step."""
        return self.step_batches * self.batch_size

    @property
    def n_clients(self) -> int:
        """How many clients there will be."""
        return self.clients or (launched_ranks() if launched_ranks() > 1 else 2)
