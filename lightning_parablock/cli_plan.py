"""``lightning-parablock plan``: what a run would take, from the model's configuration, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_parablock.blocks import Block, partition
from lightning_parablock.cli_parser import ParaBlockArgumentParser
from lightning_parablock.cli_plan_options import PlanOptions
from lightning_parablock.cli_probe import Probed, is_first_rank, probe
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.causal_lm import CausalLM
from lightning_parablock.models.flops import step_flops
from lightning_parablock.models.shapes import SHAPES, config_of, module_without_weights
from lightning_parablock.planning.timing import NOMINAL_GOODPUT, Links
from lightning_parablock.planning.units import parse_flop_per_s
from lightning_parablock.planning.variants import Workload, recommended, variants
from lightning_parablock.report.console import console
from lightning_parablock.report.dry_run import model_size
from lightning_parablock.report.large_models import large_models_table, rows_of
from lightning_parablock.report.plan import Premises, print_plan, settings_yaml

PLAN = "plan"
PLAN_HELP = "What a run would take: bytes, memory, seconds a round, and the settings to choose."


@dataclass(frozen=True)
class _Pace:
    """How fast a client computes, and where that is known from."""

    flop_per_s: float
    known_from: str


def plan_parser() -> ParaBlockArgumentParser:
    """The options of the command."""
    parser = ParaBlockArgumentParser(
        prog=f"lightning-parablock {PLAN}",
        description=f"{PLAN_HELP} Reads the model's configuration alone: no weights, no data; nothing is trained.",
    )
    parser.add_class_arguments(PlanOptions)
    return parser


def run_plan(args: Sequence[str]) -> None:
    """Do what the words after ``plan`` say.

    Raises:
        ConfigurationError: the options contradict each other, or the model cannot be found or cut as asked.
        PeerError: the probe lost a process.
    """
    options = PlanOptions(**plan_parser().parse_args(_with_values(args)).as_dict())
    config = config_of(options.model, options.gguf_file, options.layers)
    module = module_without_weights(config, options.dtype, options.adapters)
    blocks = partition(module, options.settings.blocks, options.settings.unmatched)
    probed = probe(config, options.step, options.chunk_bytes) if options.probe else None
    if is_first_rank():
        _print(options, module, blocks, probed)


def _with_values(args: Sequence[str]) -> list[str]:
    """``--probe`` alone means ``--probe true``: the parser, which reads it from the options' types, wants a value."""
    following = [*args[1:], "--"]
    return [
        f"{word}=true" if word == "--probe" and next_[:2] == "--" else word
        for word, next_ in zip(args, following, strict=True)
    ]


def _print(options: PlanOptions, module: CausalLM, blocks: Sequence[Block], probed: Probed | None) -> None:
    links = options.nominal_links or (probed.links if probed is not None else None)
    assert links is not None, "the options demand a rate or a probe of several processes"
    flops = step_flops(module, blocks, options.batch_size, options.sequence_length)
    pace = _pace(options, sum(flops) / len(flops), probed)
    workload = Workload(model_size(module, blocks), tuple(each / pace.flop_per_s for each in flops))
    found = variants(workload, options.n_clients, options.settings, links)
    chosen = recommended(found)
    screen = console(file_width=180)
    premises = _premises(options, links, pace)
    print_plan(screen, premises, blocks, workload, found, chosen)
    screen.print(large_models_table(_large_rows(options, pace, links), options.local_steps))
    if options.output is not None:
        _write(Path(options.output).expanduser(), settings_yaml(chosen, premises))


def _pace(options: PlanOptions, mean_flops: float, probed: Probed | None) -> _Pace:
    if options.step_s is not None:
        rate = mean_flops / options.step_s
        return _Pace(rate, f"{options.step_s:g} s a step, as given: {rate / 1e9:.4g} GFLOP/s")
    if probed is not None:
        speed = probed.slowest
        of = f"{len(probed.speeds)} machines, the slowest counts" if len(probed.speeds) > 1 else "this machine"
        cut = f"{speed.steps} steps of the first {speed.layers} layers"
        return _Pace(speed.flop_per_s, f"measured on {of}: {speed.flop_per_s / 1e9:.4g} GFLOP/s over {cut}")
    rate = parse_flop_per_s("flop_rate", options.flop_rate)
    return _Pace(rate, f"AN ESTIMATE from {rate / 1e12:.4g} TFLOP/s (flop_rate); give step_s or --probe to know")


def _premises(options: PlanOptions, links: Links, pace: _Pace) -> Premises:
    adapters = f", LoRA of rank {options.lora_rank}" if options.lora_rank else ""
    return Premises(
        model=options.model,
        n_clients=options.n_clients,
        links=links,
        links_from=f"{NOMINAL_GOODPUT:.0%} of the rate given" if options.rate is not None else "the slowest, measured",
        speed_from=pace.known_from,
        step=f"{options.batch_size} x {options.sequence_length} tokens, {options.dtype} weights{adapters}",
        half=options.dtype == "bfloat16",
        adapters=options.adapters,
    )


def _large_rows(options: PlanOptions, pace: _Pace, links: Links) -> list[list[str]]:
    rows: list[list[str]] = []
    for shape in SHAPES:
        module = module_without_weights(config_of(shape), "bfloat16")
        blocks = partition(module, "layers")
        flops = step_flops(module, blocks, options.batch_size, options.sequence_length)
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
