"""The options of ``lightning-parablock plan``: one frozen record, checked before a model is looked up.

Neither torch nor transformers are needed here, so that help and mistyped options take no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from lightning_parablock.checks import require
from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS
from lightning_parablock.launching.launched import launched_ranks
from lightning_parablock.models.names import ALL_LINEAR, Dtype
from lightning_parablock.planning.units import parse_bps, parse_flop_per_s
from lightning_parablock.settings import Settings, Unmatched
from lightning_parablock.system.places import refuse_unwritable_file

_COMMAND = COMMANDS["plan"]

PlannedOrder = Literal["sequential", "reverse", "shuffle", "random", "importance"]
"""Those with one exchange a round."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What to plan for.

    Args:
        model: Hub id, folder, .gguf file, package:NAME, or a known shape: llama3-8b, llama3-70b. Only the configuration
            is read.
        gguf_file: Name of the GGUF file in a folder or hub id that holds several, or other weights too.
        layers: Keep only so many layers, the first ones; null keeps all.
        clients: Number of clients. Null: the processes that torchrun started, else 2.
        rate: Rate of a client's link each way, such as 100mbit or 1gbit, or bits a second. Needed unless --probe
            measures it between the processes that torchrun started.
        server_rate: The same of the client that serves a star. Null is rate.
        step_s: Seconds of one optimizer step of the slowest client, on an average block.
        probe: Measure steps on this machine for some 20 seconds, with random weights and as many layers as fit; under
            torchrun on the machines of all processes, and their links, too.
        flop_rate: Floating-point operations a second that a client reaches, such as 50gflops or 100tflops: where
            neither step_s nor probe is given, step times are an estimate from this.
        batch_size: Sequences an optimizer step and client.
        sequence_length: Tokens a sequence.
        dtype: Type of the weights. With bfloat16 the block in training has a float32 master copy.
        lora_rank: Rank of LoRA adapters; with them only the adapters are trained and sent. 0 for none; as in fit.
        lora_targets: Layers with adapters, as in fit.
        local_steps: Local steps a round (K) in the table; more are recommended only where no compression hides the
            exchange behind so many.
        blocks: How the model is cut: "layers", a number of blocks, or a list of regular expressions; as in fit.
        unmatched: What becomes of parameters that no pattern of blocks matches: "error" or "freeze".
        block_order: Which block each round trains: "sequential", "reverse", "shuffle", "random" or "importance".
        server_optimizer: "sgd" or "nesterov", which keeps a velocity in the server's memory.
        chunk_bytes: Float32 payload of one message, in bytes, a multiple of 4096.
        seed: Of the block order.
        output: File for the recommended settings, which fit takes with --config; null only prints them.
    """

    model: str
    gguf_file: str | None = None
    layers: int | None = None
    clients: int | None = None
    rate: str | None = None
    server_rate: str | None = None
    step_s: float | None = None
    probe: bool = False
    flop_rate: str = "100tflops"
    batch_size: int = 1
    sequence_length: int = 128
    dtype: Dtype = "float32"
    lora_rank: int = 0
    lora_targets: str | list[str] = ALL_LINEAR
    local_steps: int = 16
    blocks: Literal["layers"] | int | list[str] = "layers"
    unmatched: Unmatched = "error"
    block_order: PlannedOrder = "shuffle"
    server_optimizer: Literal["sgd", "nesterov"] = "sgd"
    chunk_bytes: int = 1 << 20
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "clients", "batch_size", "sequence_length"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be a whole number >= 1, got {value}")
        require(self.step_s is None or 0 < self.step_s < float("inf"), f"step_s must be > 0, got {self.step_s}")
        require(not (self.probe and self.step_s), "step_s is given and probe would measure it; leave one out")
        measures_links = self.probe and launched_ranks() > 1
        require(
            self.rate is not None or measures_links,
            "rate is missing: give --rate 100mbit, or start plan --probe under torchrun, which measures it",
        )
        if self.output is not None:
            refuse_unwritable_file(Path(self.output).expanduser(), "output")
        _ = self.settings, self.n_clients  # checked before the model is looked up
        for name in ("rate", "server_rate"):
            if getattr(self, name) is not None:
                parse_bps(name, getattr(self, name))
        parse_flop_per_s("flop_rate", self.flop_rate)

    @property
    def settings(self) -> Settings:
        """The method's settings; topology and compression vary in the plan."""
        return Settings(
            local_steps=self.local_steps,
            delay_steps=self.local_steps,
            blocks=self.blocks,
            unmatched=self.unmatched,
            block_order=self.block_order,
            server_optimizer=self.server_optimizer,
            chunk_bytes=self.chunk_bytes,
            seed=self.seed,
        )

    @property
    def n_clients(self) -> int:
        """How many clients there will be."""
        return self.clients or (launched_ranks() if launched_ranks() > 1 else 2)


def run_plan(args: Sequence[str]) -> None:
    """Do what the words after ``plan`` say.

    Raises:
        ConfigurationError: the options contradict each other, or the model cannot be found or cut as asked.
        PeerError: the probe lost a process.
    """
    options = PlanOptions(**plan_parser().parse_args(_with_values(args)).as_dict())
    from lightning_parablock.cli.commands.plan import plan

    plan(options)


def plan_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Reads the model's configuration alone: no weights, no data; nothing is trained.",
    )
    parser.add_class_arguments(PlanOptions)
    return parser


def _with_values(args: Sequence[str]) -> list[str]:
    """``--probe`` alone means ``--probe true``: the parser, which reads it from the options' types, wants a value."""
    return [
        f"{word}=true" if word == "--probe" and following[:2] == "--" else word
        for word, following in pairwise([*args, "--"])
    ]
