"""LightningCLI with this package's defaults, run folder, plan and table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_parablock.callbacks.predictions import file_of_site, refuse_file
from lightning_parablock.callbacks.sight_figures import WORST
from lightning_parablock.cli.early_checks import check_sources, check_strategy, is_awaited
from lightning_parablock.cli.errors import one_line
from lightning_parablock.cli.help import asks_for_help, command_help
from lightning_parablock.cli.light_models import small, without_weights
from lightning_parablock.cli.newest_checkpoint import refuse_last
from lightning_parablock.cli.run_options import add_run_options
from lightning_parablock.cli.spellings import DATA_CLASS_PATH, MODEL_CLASS_PATH, STRATEGY_CLASS_PATH, expand_argv
from lightning_parablock.cli.trainer_arguments import (
    Observers,
    keep_notes,
    observers,
    prediction_file,
    processes,
    refuse_forks,
    run_folder_arguments,
    with_progress,
)
from lightning_parablock.cli.trainer_parser import ParaBlockArgumentParser
from lightning_parablock.errors import ConfigurationError, DataError, ParaBlockError
from lightning_parablock.lightning_private.command_line import CommandLine
from lightning_parablock.report.console import console
from lightning_parablock.report.dry_run import print_dry_run
from lightning_parablock.report.summary import Here, held_out_metrics, results_table, summarise, summary_table
from lightning_parablock.runs.run import Run, strategy_facts
from lightning_parablock.runs.site_files import SaveConfig

DEFAULTS = {
    "trainer.strategy": {"class_path": STRATEGY_CLASS_PATH},
    "model": {"class_path": MODEL_CLASS_PATH},
    "data": {"class_path": DATA_CLASS_PATH},
}
PRINT_CONFIG = "--print_config"
EPILOG = "The options of another model: --model CLASS_PATH --help; in the same way --data and --strategy."


class ParaBlockCLI(CommandLine):
    """LightningCLI whose strategy, model and data module are this package's unless others are given.

    Args:
        run: Receives the run's folder and manifest.
        args: The command line without the program's name.
        defaults: Default values of options, by dotted name.
    """

    _observers: Observers
    """Of the run; made with the trainer, unless only a plan is wanted."""

    def __init__(self, run: Run, args: Sequence[str], defaults: dict[str, Any] = DEFAULTS) -> None:
        self.run = run
        self._defaults = defaults
        self._data_problem: DataError | None = None
        super().__init__(
            LightningModule,
            subclass_mode_model=True,
            parser_class=ParaBlockArgumentParser,
            parser_kwargs={
                "description": "Federated block coordinate fine-tuning in PyTorch Lightning.",
                **{command: {"epilog": EPILOG} for command in self.subcommands()},
            },
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True, "run": run},
            seed_everything_default=0,
            args=list(args),
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        assert isinstance(self.parser, ParaBlockArgumentParser)
        command = list(self.subcommands())[len(self.parser.commands)]
        self.parser.commands.append(parser)
        add_run_options(parser, command)
        parser.set_defaults(self._defaults)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        self._show_help(args)
        try:
            words = expand_argv(args)
            quiet = [word for word in words if not word.startswith(PRINT_CONFIG)]
            self.config = parser.parse_args(quiet)
            if self._take_chosen_classes() or quiet != words:
                self.config = parser.parse_args(words)
        except ConfigurationError as error:
            parser.error(str(error), error)

    def _show_help(self, args: Sequence[str]) -> None:
        assert isinstance(self.parser, ParaBlockArgumentParser)
        names = list(self.subcommands())
        command = next((word for word in args if word in names), None)
        if command is not None and asks_for_help(args):
            lightnings = self.parser.commands[names.index(command)].format_help()
            print(command_help(command, lightnings, args, self._defaults))
            sys.exit(0)

    def _take_chosen_classes(self) -> bool:
        """Make chosen classes the defaults; True if any differs from the default.

        Otherwise the default class would lend its values to options of the same name in the chosen one: a module's own
        learning rate, for example, would become that of CausalLM.
        """
        command: str = self.config.subcommand
        chosen = dict[str, Any]()
        for name, default in self._defaults.items():
            value = self.config[command].get(name)
            if isinstance(value, Namespace) and value.class_path != default["class_path"]:
                chosen[name] = {"class_path": value.class_path}
        if chosen:
            assert isinstance(self.parser, ParaBlockArgumentParser)
            self.parser.commands[list(self.subcommands()).index(command)].set_defaults(chosen)
        return bool(chosen)

    @override
    def take_checkpoint_options(self) -> None:
        """Hyperparameters in a checkpoint become the model's options; a file that is no checkpoint is refused here."""
        try:
            super().take_checkpoint_options()
        except ParaBlockError:
            raise
        except Exception as error:  # what the unpickler makes of foreign bytes may raise anything
            path = self.config[self.config.subcommand].ckpt_path
            raise ConfigurationError(
                f"{path} cannot be read as a checkpoint: {type(error).__name__}; it must be a file that Lightning "
                "saved, with tensors and plain values alone"
            ) from error

    @override
    def before_instantiate_classes(self) -> None:
        """Check the strategy's settings and the data's sources first: building the model may take minutes."""
        self.run.site = self.option("trainer.strategy.init_args.site")
        self.run.comes_back = self.option("trainer.strategy.init_args.lighthouse") is not None
        check_strategy(self.option("trainer.strategy"))
        refuse_last(
            *(self.option("ckpt_path"), self.option("trainer"), self.option("run_dir"), self.run.site),
            is_elastic_fit=self.run.comes_back and self.config.subcommand == "fit",
        )
        try:
            check_sources(self.option("data"), self.config.subcommand)
        except DataError as error:
            if not is_awaited(self.run.site, self.option("trainer.num_nodes", 1)):
                raise
            # The others wait for this process where the clients meet, and hear of it there.
            self._data_problem = error
            sys.stderr.write(f"parablock: {error}; the run ends as soon as the clients have met\n")

    @override
    def instantiate_classes(self) -> None:
        output = self.option("output")
        if output is not None and (self.run.rank == 0 or self.run.site is not None):
            refuse_file(file_of_site(Path(output).expanduser(), self.run.site))
        if not self._dry_run and not self.option("trainer.fast_dev_run"):
            self.run.check_folder(self.option("run_dir"), self.option("trainer.default_root_dir"))
        with self._light_model():
            super().instantiate_classes()
        if self._data_problem is not None:
            datamodule: Any = self.datamodule
            datamodule.problem = self._data_problem

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given: Namespace = self.built("trainer")
        kwargs |= processes(given, self.option("trainer.strategy.init_args"))
        if not self._dry_run and not given.fast_dev_run:
            kwargs |= run_folder_arguments(self.run, self.option("run_dir"), given)
        kwargs["callbacks"] = self._callbacks(given)
        try:
            trainer = refuse_forks(super().instantiate_trainer(**kwargs))
        except ConfigurationError:
            raise
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigurationError(f"the trainer cannot be built: {one_line(error)}") from error
        if self.run.comes_back:
            keep_notes(trainer, self.option("run_dir"), given)
        return trainer

    @override
    def run_command(self, subcommand: str) -> None:
        if self._dry_run:
            self._print_plan()
            return
        self.dump_configuration()
        self.run.begin(
            {
                "subcommand": subcommand,
                "seed": self.option("seed_everything"),
                "configuration": self.config_dump,
            }
        )
        super().run_command(subcommand)
        predictions = self._observers.predictions
        if predictions is not None and predictions.written is not None:
            print("predictions: {} ({} rows)".format(*predictions.written))

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Measure the held-out loss, train, measure it again, and print the table of the run."""
        before = self._held_out(model, kwargs)
        started_s = time.monotonic()
        self.trainer.fit(model, **kwargs)
        fit_s = time.monotonic() - started_s
        # Before the next evaluation, which each site of an elastic run makes alone.
        strategy: Any = self.trainer.strategy
        clients = getattr(strategy, "n_clients", self.trainer.world_size)
        told = len(getattr(strategy, "hosted_clients", (0,))) if self._observers.own_only else clients
        records = self._observers.timeline.records
        here = Here.of(strategy, records)
        weights: str | None = getattr(strategy, "weights_sha256", None)
        after = self._held_out(model, {**kwargs, "ckpt_path": None})
        summary = summarise(records, before, after, fit_s, clients=clients, clients_told=told, here=here)
        if self.run.manifest is not None:
            result = {**summary.as_dict(), "weights_sha256": weights}
            self.run.manifest.add(result=result, strategy=strategy_facts(strategy))
        if self.trainer.is_global_zero or self.run.site is not None:
            console().print(summary_table(summary))
            if weights is not None:
                print(f"weights: sha256 {weights[:16]}{', the same on every client' if clients > 1 else ''}")
            print(f"run folder: {self.run.folder}")

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Validate and show the figures."""
        self._show(self.trainer.validate(model, **kwargs))

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Test and show the figures."""
        self._show(self.trainer.test(model, **kwargs))

    def _show(self, results: Sequence[Mapping[str, float]]) -> None:
        """The figures on further sites: Lightning prints them on the first rank alone."""
        if self.run.site is not None and not self.trainer.is_global_zero:
            console().print(results_table(results))

    @property
    def _dry_run(self) -> bool:
        return bool(self.option("dry_run", False))

    def _held_out(self, model: LightningModule, kwargs: dict[str, Any]) -> dict[str, float]:
        wanted = self.option("validate_before_and_after") and not self.built("trainer").fast_dev_run
        if not wanted or not is_overridden("validation_step", model) or self.trainer.limit_val_batches == 0:
            return {}
        data = self.datamodule if self.datamodule is not None else model
        if not is_overridden("val_dataloader", data):
            return {}
        path, settings = kwargs.get("ckpt_path"), getattr(self.trainer.strategy, "settings", None)
        if path is not None and getattr(settings, "is_elastic", False) and not Path(path).is_file():
            return {}  # another founder may have it
        results = self.trainer.validate(
            model, datamodule=kwargs.get("datamodule"), ckpt_path=kwargs.get("ckpt_path"), verbose=False
        )
        found: dict[str, Any] = {name: value for result in results for name, value in result.items()}
        if self.trainer.world_size > 1 and WORST in self.trainer.callback_metrics:
            found[WORST] = self.trainer.callback_metrics[WORST]
        return held_out_metrics(found)

    def _callbacks(self, given: Namespace) -> list[Callback]:
        callbacks = with_progress(given)
        if self._dry_run:
            return callbacks
        written = None
        if self.config.subcommand == "predict":
            output: str | None = self.option("output")
            written = prediction_file(self.run, output, callbacks, is_trial=bool(given.fast_dev_run))
        self._observers = observers(self.run, self.option("shared"), callbacks, written)
        return [*callbacks, *self._observers.callbacks]

    def _light_model(self) -> AbstractContextManager[None]:
        """Load no weights for a plan, nor where the data cannot be read."""
        model: Namespace = self.option("model")
        if self._dry_run:
            return without_weights(model)
        return nullcontext() if self._data_problem is None else small(model)

    def _print_plan(self) -> None:
        if self.run.rank == 0 or self.run.site is not None:
            own_seed: int | None = self.option("trainer.strategy.init_args.seed")
            seed = self.option("seed_everything") if own_seed is None else own_seed
            print_dry_run(console(), self.trainer, self.model, self.datamodule, seed)
