"""``lightning-parablock evaluate``: a checkpoint on test rows: loss, perplexity, and GSM8K's exact match."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning_parablock.cli.parser import CommandParser
from lightning_parablock.cli.table import COMMANDS
from lightning_parablock.data.text import FederatedTextDataModule
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.places import refuse_unwritable_file
from lightning_parablock.system.units import readable_number

_COMMAND = COMMANDS["evaluate"]


def evaluate_parser() -> CommandParser:
    """The options of the command."""
    parser = CommandParser(
        prog=_COMMAND.prog,
        description=f"{_COMMAND.help} Exact match generates an answer to each question greedily and compares the "
        "number after ####. The rows are those of data.test_source or, without one, of data.source, whole. Of rows "
        "longer than data.sequence_length the loss is that of the answer's part that fits; examples_cut counts them.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="A checkpoint that CausalLM saved.")
    parser.add_argument("--output", type=str | None, default=None, help="A JSON file to write the figures to.")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, mps, ...")
    parser.add_argument(
        "--predict_tokens", type=int, default=256, help="Largest number of tokens of a generated answer."
    )
    parser.add_class_arguments(FederatedTextDataModule, "data")
    return parser


def run_evaluate(args: Sequence[str]) -> None:
    """Run ``evaluate`` on the words that follow it and print the figures.

    Raises:
        ConfigurationError: the checkpoint or the data cannot be used.
    """
    parser = evaluate_parser()
    options = parser.parse_args(list(args))
    if options.data.test_source is None:  # the rows to measure on, all of them; nothing is trained here
        options.data.test_source, options.data.test_split = options.data.source, options.data.split
    data: FederatedTextDataModule = cast(Any, parser.instantiate(options)).data
    output = Path(options.output).expanduser() if options.output else None
    if output is not None:
        if not output.parent.is_dir():
            raise ConfigurationError(f"the folder of output {output} does not exist")
        refuse_unwritable_file(output, "output")
    figures = _measured(Path(options.ckpt_path).expanduser(), data, options.predict_tokens, options.accelerator)
    for name, value in figures.items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {readable_number(value)}")
    if output is not None:
        output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        print(f"figures: {output}")


def _measured(ckpt_path: Path, data: FederatedTextDataModule, predict_tokens: int, accelerator: str) -> dict[str, Any]:
    import lightning.pytorch as pl  # late, like the models: help and mistyped options need neither

    from lightning_parablock.models.causal_lm import CausalLM
    from lightning_parablock.models.export import read_checkpoint

    read_checkpoint(ckpt_path)
    module = CausalLM.load_from_checkpoint(ckpt_path, map_location="cpu", predict_tokens=predict_tokens)
    if data.tokenizer_name is None:
        data.tokenizer = module.tokenizer
    data.setup("test")
    generates = data.options.format == "gsm8k"
    if generates:
        _refuse_cut_prompts(data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        (losses,) = trainer.test(module, datamodule=data, verbose=False)
        cut = int(data.test_set.lost.any(dim=1).sum())
        figures: dict[str, Any] = {"examples": len(data.test_set), "examples_cut": cut}
        figures |= {name: float(value) for name, value in losses.items()}
        if generates:
            figures |= _exact_match(trainer, module, data)
    return figures


def _refuse_cut_prompts(data: FederatedTextDataModule) -> None:
    """Half a question cannot be answered, and to leave it out would leave out the hard ones."""
    examples = data.test_set
    cut = int((examples.lost[:, 0] > 0).sum())
    if cut:
        longest = int((examples.lengths + examples.lost.sum(dim=1)).max())
        raise ConfigurationError(
            f"{cut} of {len(examples)} questions are too long for data.sequence_length={data.options.sequence_length}, "
            f"of which a quarter is kept for the answer; {longest} holds every row whole"
        )


def _exact_match(trainer: Any, module: Any, data: FederatedTextDataModule) -> dict[str, Any]:
    from lightning_parablock.models.exact_match import ExactMatch, final_number

    metric, without = ExactMatch(), 0
    completed = [one for batch in trainer.predict(module, datamodule=data) for one in batch]
    for one, answer in zip(completed, data.test_answers(), strict=True):
        if final_number(answer) is None:
            without += 1
        else:
            metric.update(one["completion"], answer)
    if without == len(completed):
        raise ConfigurationError(f"no answer of the {without} test rows ends in a number after ####")
    return {"exact_match": float(metric.compute()), "examples_without_a_number": without}
