"""``lightning-parablock plan``: what a run would take, from the model's configuration, before anything is started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.cli.commands.plan_options import PlanOptions
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.flops import layers_flops, step_flops
from lightning_parablock.models.lora import Adapters
from lightning_parablock.models.shapes import SHAPES, ModelShape, config_of, module_without_weights
from lightning_parablock.planning.fitting import budget_of, fewest_blocks
from lightning_parablock.planning.memory import model_size
from lightning_parablock.planning.timing import NOMINAL_GOODPUT, Links
from lightning_parablock.planning.variants import Workload, recommended, variants
from lightning_parablock.report.console import console
from lightning_parablock.report.large_models import large_models_table, rows_of
from lightning_parablock.report.plan import Premises, print_plan, settings_yaml
from lightning_parablock.settings import AUTO, Settings
from lightning_parablock.system.units import parse_bps, parse_flop_per_s

if TYPE_CHECKING:
    from lightning_parablock.cli.commands.probe import Probed  # what it imports is needed for a probe alone
    from lightning_parablock.models.speed import Step


@dataclass(frozen=True)
class _Pace:
    """How fast a client computes, and where that is known from."""

    flop_per_s: float
    known_from: str


def plan(options: PlanOptions) -> None:
    """Print the plan, and write the settings to choose where the options name a file.

    Raises:
        ConfigurationError: the options contradict each other, or the model cannot be found or cut as asked.
        PeerError: the probe lost a process.
    """
    adapters = _adapters(options)
    config = config_of(options.model, options.gguf_file, options.layers)
    module = module_without_weights(config, options.dtype, adapters)
    cuts = _Cuts(options, module)
    cuts.blocks_of(options.settings)  # refuses what cannot be cut before anything is measured
    probed = _probed(config, options) if options.probe else None
    if int(os.environ.get("RANK", 0)) == 0:  # it speaks for all
        _print(options, cuts, probed)


class _Cuts:
    """The blocks of a model for given settings, and the operations of a local step on each.

    Args:
        options: The options of the plan.
        module: The model.
    """

    def __init__(self, options: PlanOptions, module: ModelShape) -> None:
        self._options, self._module = options, module
        self._flops: dict[str | int | tuple[str, ...], list[float]] = {}

    def blocks_of(self, settings: Settings) -> tuple[list[Block], Settings]:
        """The blocks, and the settings in which they are no longer "auto".

        Raises:
            ConfigurationError: the model cannot be cut so, or no number of blocks fits into memory.
        """
        if settings.blocks == AUTO:
            budget = budget_of(self._device(), self._module, settings.memory)
            fit = fewest_blocks(self._module, [budget], self._options.n_clients, settings)
            return fit.blocks, settings.with_blocks(len(fit.blocks))
        return partition(self._module, settings.blocks, settings.unmatched), settings

    def flops_of(self, settings: Settings) -> list[float]:
        """Floating-point operations of a local step on each of the blocks."""
        blocks, cut = self.blocks_of(settings)
        if cut.blocks not in self._flops:
            sequences, length = self._options.step_sequences, self._options.sequence_length
            self._flops[cut.blocks] = step_flops(self._module, blocks, sequences, length)
        return self._flops[cut.blocks]

    def workload_of(self, settings: Settings, flop_per_s: float) -> tuple[Workload, Settings]:
        """The computation with these settings, and the settings with the number of blocks."""
        blocks, cut = self.blocks_of(settings)
        step_s = tuple(each / flop_per_s for each in self.flops_of(cut))
        return Workload(model_size(self._module, blocks), step_s, tuple(blocks)), cut

    def _device(self) -> torch.device:
        here = "cuda" if torch.cuda.is_available() else "cpu"
        device = self._options.device or here
        if device != here and self._options.memory is None:
            raise ConfigurationError(
                f"blocks 'auto' needs memory: this machine computes on {here}, not on {device}; give --memory 24gb"
            )
        return torch.device(device)


def _print(options: PlanOptions, cuts: _Cuts, probed: Probed | None) -> None:
    links = _nominal_links(options) or (probed.links if probed is not None else None)
    assert links is not None, "the options demand a rate or a probe of several processes"
    flops = cuts.flops_of(options.settings)
    pace = _pace(options, sum(flops) / len(flops), probed)
    found = variants(lambda s: cuts.workload_of(s, pace.flop_per_s), options.n_clients, options.settings, links)
    chosen = recommended(found)
    screen = console(file_width=180)
    premises = _premises(options, links, pace)
    print_plan(screen, premises, found, chosen)
    screen.print(large_models_table(_large_rows(options, pace, links), options.local_steps))
    if options.output is not None:
        _write(Path(options.output).expanduser(), settings_yaml(chosen, premises))


def _adapters(options: PlanOptions) -> Adapters:
    """Those that the model gets; none where the rank is 0."""
    return Adapters(options.lora_rank, targets=options.lora_targets)


def _probed(config: PretrainedConfig, options: PlanOptions) -> Probed:
    from lightning_parablock.cli.commands.probe import probe

    return probe(config, _step(options), options.chunk_bytes)


def _step(options: PlanOptions) -> Step:
    """What one local step trains on, on this machine."""
    from lightning_parablock.models.speed import Step

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return Step(options.batch_size, options.sequence_length, options.dtype, device, processes)


def _nominal_links(options: PlanOptions) -> Links | None:
    """What payload gets of the rates that were given; None where they are to be measured."""
    if options.rate is None:
        return None
    client_bps = NOMINAL_GOODPUT * parse_bps("rate", options.rate)
    server_rate = options.server_rate if options.server_rate is not None else options.rate
    return Links(client_bps, NOMINAL_GOODPUT * parse_bps("server_rate", server_rate))


def _pace(options: PlanOptions, mean_flops: float, probed: Probed | None) -> _Pace:
    if options.step_s is not None:
        rate = mean_flops / options.step_s
        return _Pace(rate, f"{options.step_s:g} s per step, as given: {rate / 1e9:.4g} GFLOP/s")
    if probed is not None:
        speed = probed.slowest
        of = f"{len(probed.speeds)} machines, the slowest counts" if len(probed.speeds) > 1 else "this machine"
        cut = f"{speed.steps} steps of the first {speed.layers} layers"
        return _Pace(speed.flop_per_s, f"measured on {of}: {speed.flop_per_s / 1e9:.4g} GFLOP/s over {cut}")
    rate = parse_flop_per_s("flop_rate", options.flop_rate)
    return _Pace(rate, f"AN ESTIMATE from {rate / 1e12:.4g} TFLOP/s (flop_rate); give step_s or --probe to know")


def _premises(options: PlanOptions, links: Links, pace: _Pace) -> Premises:
    adapters = f", LoRA of rank {options.lora_rank}" if options.lora_rank else ""
    tokens = f"{options.step_sequences * options.sequence_length:,} tokens"
    batches = f"{options.step_batches} x " if options.step_batches > 1 else ""
    return Premises(
        model=options.model,
        n_clients=options.n_clients,
        links=links,
        links_from=f"{NOMINAL_GOODPUT:.0%} of the rate given" if options.rate is not None else "the slowest, measured",
        speed_from=pace.known_from,
        step=f"{tokens} ({batches}{options.batch_size} x {options.sequence_length}), {options.dtype} weights{adapters}",
        step_batches=options.step_batches,
        half=options.dtype == "bfloat16",
        adapters=_adapters(options),
    )


def _large_rows(options: PlanOptions, pace: _Pace, links: Links) -> list[list[str]]:
    rows: list[list[str]] = []
    for shape in SHAPES:
        config = config_of(shape)
        module = module_without_weights(config, "bfloat16")
        blocks = partition(module, "layers")
        flops = layers_flops(config, options.step_sequences, options.sequence_length)
        workload = Workload(model_size(module, blocks), tuple(each / pace.flop_per_s for each in flops))
        rows += rows_of(shape, workload, options.settings, links)
    return rows


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"output {path} cannot be written: {error.strerror or error}") from error
    print(f"settings: {path}")
