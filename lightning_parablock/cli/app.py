"""LightningCLI with this package's defaults, run folder, plan and table."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import (
    _MultiProcessingLauncher,  # pyright: ignore[reportPrivateUsage]
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_parablock.callbacks import ClientSight, RoundMetrics, RoundProgressBar, Timeline
from lightning_parablock.callbacks.predictions import PredictionFile, file_of_site, refuse_file
from lightning_parablock.callbacks.sight import Shared
from lightning_parablock.callbacks.sight_figures import WORST
from lightning_parablock.cli.errors import one_line
from lightning_parablock.cli.help import asks_for_help, command_help
from lightning_parablock.cli.spellings import (
    DATA_CLASS_PATH,
    MODEL_CLASS_PATH,
    STRATEGY_CLASS_PATH,
    check_strategy_name,
    expand_argv,
)
from lightning_parablock.cli.trainer_parser import ParaBlockArgumentParser
from lightning_parablock.errors import ConfigurationError, DataError, ParaBlockError
from lightning_parablock.launching.launched import launched_devices
from lightning_parablock.report.console import console
from lightning_parablock.report.dry_run import print_plan
from lightning_parablock.report.summary import Here, held_out_metrics, results_table, summarise, summary_table
from lightning_parablock.runs.run import Run, RunFacts
from lightning_parablock.runs.site_files import SaveConfig, SiteCSVLogger
from lightning_parablock.strategy.presets import PRESETS

DEFAULTS = {
    "trainer.strategy": {"class_path": STRATEGY_CLASS_PATH},
    "model": {"class_path": MODEL_CLASS_PATH},
    "data": {"class_path": DATA_CLASS_PATH},
}
PREDICTIONS_NAME = "predictions.jsonl"
PRINT_CONFIG = "--print_config"
EPILOG = "The options of another model: --model CLASS_PATH --help; in the same way --data and --strategy."


class ParaBlockCLI(LightningCLI):
    """LightningCLI whose strategy, model and data module are this package's unless others are given.

    Args:
        run: Receives the run's folder and manifest.
        args: The command line without the program's name.
        defaults: Default values of options, by dotted name.
    """

    def __init__(self, run: Run, args: Sequence[str], defaults: dict[str, Any] = DEFAULTS) -> None:
        self.run = run
        self._defaults = defaults
        self._timeline, self._own_only = Timeline(), False
        self._predictions: PredictionFile | None = None
        self._data_problem: DataError | None = None
        super().__init__(
            LightningModule,
            subclass_mode_model=True,
            parser_class=ParaBlockArgumentParser,
            parser_kwargs={
                "description": "Federated block coordinate fine-tuning under PyTorch Lightning.",
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
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of this run: logs, configuration, manifest, timeline. Default: a folder named by date and "
            "time in trainer.default_root_dir, or in ./runs.",
        )
        parser.add_argument(
            "--shared",
            type=Shared,
            default="clients",
            help="What each client shares besides its deltas: 'clients' (its losses, rounds, times, host and the sizes "
            "of its data), 'aggregates' (only sums, maxima and minima over all clients), or 'nothing'.",
        )
        if command == "fit":
            _add_fit_arguments(parser)
        if command == "predict":
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="New JSON Lines file for the predictions, one object per row; sites that have names write one "
                "each, such as predictions-a.jsonl. Default: predictions.jsonl in the run's folder.",
            )
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
        """Make other classes than the defaults defaults themselves; True if there are any.

        Or options that nobody gave would have, in another class, the values of those of the same name in the default
        class: a module's own learning rate, for example, that of CausalLM.
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
    def _parse_ckpt_path(self) -> None:
        """Hyperparameters in a checkpoint become the model's options; one that is none is refused here."""
        try:
            super()._parse_ckpt_path()
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
        """Check the strategy's settings first: that takes no time, and building the model may take minutes."""
        strategy = self._get(self.config, "trainer.strategy")
        if isinstance(strategy, str):
            check_strategy_name(strategy)
        elif isinstance(strategy, Namespace):
            for name in ("compression", "server_optimizer"):  # by itself, or the cause is lost among those of a union
                chosen = strategy.get(f"init_args.{name}")
                if isinstance(chosen, Namespace):
                    instantiate_class((), chosen.as_dict())
            checker = ArgumentParser(exit_on_error=False)
            checker.add_argument("--strategy", type=Strategy)
            try:
                checker.instantiate_classes(Namespace(strategy=strategy))
            except TypeError as error:
                raise ConfigurationError(f"the strategy cannot be built: {one_line(error)}") from error
        self._check_data()

    def _check_data(self) -> None:
        """Where the data module can tell, without reading them, that its sources cannot be read."""
        data = self._get(self.config, "data")
        if not isinstance(data, Namespace):
            return
        module, _, name = data.class_path.rpartition(".")
        if hasattr(getattr(import_module(module), name, None), "check_sources"):
            try:
                checked: Any = instantiate_class((), data.as_dict())
                checked.check_sources(self.config.subcommand)
            except DataError as error:
                if not self._meets_others:
                    raise
                # The others wait for this process where the clients meet, and hear of it there.
                self._data_problem = error
                sys.stderr.write(f"parablock: {error}; the run ends as soon as the clients have met\n")

    @property
    def _meets_others(self) -> bool:
        """Whether other processes that this one has not started wait for it."""
        launched = any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))
        sited = self._get(self.config, "trainer.strategy.init_args.site") is not None
        return launched or sited or self._get(self.config, "trainer.num_nodes", 1) > 1

    @override
    def instantiate_classes(self) -> None:
        self.run.site = self._get(self.config, "trainer.strategy.init_args.site")
        output = self._get(self.config, "output")
        if output is not None and (self.run.rank == 0 or self.run.site is not None):
            refuse_file(file_of_site(Path(output).expanduser(), self.run.site))
        if not self._dry_run and not self._get(self.config, "trainer.fast_dev_run"):
            self.run.check_folder(self._get(self.config, "run_dir"), self._get(self.config, "trainer.default_root_dir"))
        with self._without_weights() if self._dry_run else self._unread_where_it_fails():
            super().instantiate_classes()
        if self._data_problem is not None:
            datamodule: Any = self.datamodule
            datamodule.problem = self._data_problem

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given: Namespace = self._get(self.config_init, "trainer")
        if given.devices == "auto":  # Lightning would take one on a machine without a GPU
            init_args: Any = self._get(self.config, "trainer.strategy.init_args") or {}
            started = launched_devices() if init_args.get("rendezvous") is None else {}  # no launcher counts the sites
            kwargs |= started or ({"devices": 1} if init_args.get("site") is not None else {})
        if not self._dry_run and not given.fast_dev_run:
            kwargs |= self._run_folder_arguments(given)
        kwargs["callbacks"] = self._callbacks(given)
        try:
            return _refuse_forks(super().instantiate_trainer(**kwargs))
        except ConfigurationError:
            raise
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise ConfigurationError(f"the trainer cannot be built: {one_line(error)}") from error

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if self._dry_run:
            self._print_plan()
            return
        self._dump_config()
        self.run.begin(
            {
                "subcommand": subcommand,
                "seed": self._get(self.config, "seed_everything"),
                "configuration": self.config_dump,
            }
        )
        super()._run_subcommand(subcommand)
        if self._predictions is not None and self._predictions.written is not None:
            print("predictions: {} ({} rows)".format(*self._predictions.written))

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Measure the held-out loss, train, measure it again, and print the table of the run."""
        before = self._held_out(model, kwargs)
        started_s = time.monotonic()
        self.trainer.fit(model, **kwargs)
        fit_s = time.monotonic() - started_s
        after = self._held_out(model, {**kwargs, "ckpt_path": None})
        strategy: Any = self.trainer.strategy
        clients = getattr(strategy, "n_clients", self.trainer.world_size)
        told = len(getattr(strategy, "hosted_clients", (0,))) if self._own_only else clients
        records = self._timeline.records
        here = Here.of(strategy, records)
        weights: str | None = getattr(strategy, "weights_sha256", None)
        summary = summarise(records, before, after, fit_s, clients=clients, clients_told=told, here=here)
        if self.run.manifest is not None:
            self.run.manifest.add(result={**summary.as_dict(), "weights_sha256": weights})
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
        return bool(self._get(self.config, "dry_run", False))

    def _held_out(self, model: LightningModule, kwargs: dict[str, Any]) -> dict[str, float]:
        wanted = (
            self._get(self.config, "validate_before_and_after")
            and not self._get(self.config_init, "trainer").fast_dev_run
        )
        if not wanted or not is_overridden("validation_step", model) or self.trainer.limit_val_batches == 0:
            return {}
        data = self.datamodule if self.datamodule is not None else model
        if not is_overridden("val_dataloader", data):
            return {}
        results = self.trainer.validate(
            model, datamodule=kwargs.get("datamodule"), ckpt_path=kwargs.get("ckpt_path"), verbose=False
        )
        found: dict[str, Any] = {name: value for result in results for name, value in result.items()}
        if self.trainer.world_size > 1 and WORST in self.trainer.callback_metrics:
            found[WORST] = self.trainer.callback_metrics[WORST]
        return held_out_metrics(found)

    def _callbacks(self, given: Namespace) -> list[Callback]:
        listed: Any = given.callbacks or []
        callbacks = list(listed) if isinstance(listed, (list, tuple)) else [listed]
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(RoundProgressBar())
        if not any(isinstance(c, RoundMetrics) for c in callbacks):
            callbacks.append(RoundMetrics())
        if self._dry_run:
            return callbacks
        sights = [c for c in callbacks if isinstance(c, ClientSight)]
        if not sights:
            sights = [ClientSight(self._get(self.config, "shared"), folder=self._site_folder())]
            callbacks.append(sights[0])
        _refuse_more_shared(self._get(self.config, "shared"), sights)
        self._own_only = any(sight.shared != "clients" for sight in sights)
        self._timeline = Timeline(self._site_folder(outer=True), own_only=self._own_only)
        self._predictions = self._prediction_file(callbacks)
        writers = [] if self._predictions is None else [self._predictions]
        return [*callbacks, RunFacts(self.run, self._own_only), self._timeline, *writers]

    def _prediction_file(self, callbacks: Sequence[Callback]) -> PredictionFile | None:
        """In the command predict, unless the user has a writer of their own and names no file."""
        if self.config.subcommand != "predict":
            return None
        output = self._get(self.config, "output")
        if output is not None:
            return PredictionFile(Path(output).expanduser())
        if any(isinstance(callback, BasePredictionWriter) for callback in callbacks) or self._get(
            self.config_init, "trainer.fast_dev_run"
        ):
            return None
        return PredictionFile(lambda: Path(self.run.folder or ".", PREDICTIONS_NAME))

    def _run_folder_arguments(self, given: Namespace) -> dict[str, Any]:
        folder = self.run.open_folder(self._get(self.config, "run_dir"), given.default_root_dir)
        arguments: dict[str, Any] = {"default_root_dir": str(folder)}
        if given.logger is None or given.logger is True:
            kind = CSVLogger if self.run.site is None else SiteCSVLogger
            logger = arguments["logger"] = kind(folder.parent, name="", version=folder.name)
            # Opened while the folder is empty: it warns of, and removes, what an earlier run left.
            _ = logger.experiment
        return arguments

    def _site_folder(self, *, outer: bool = False) -> str | None:
        """The run folder where each site has one of its own, or the folder of it; else None."""
        if self.run.site is None or self.run.folder is None:
            return None
        return str(self.run.folder.parent if outer else self.run.folder)

    @contextlib.contextmanager
    def _unread_where_it_fails(self) -> Any:
        """Where the data cannot be read no model is loaded, if it can be built small and with random weights."""
        model: Namespace = self._get(self.config, "model")
        options: dict[str, Any] = {"random_weights": True, "layers": 1}
        if self._data_problem is None or not all(name in (model.get("init_args") or {}) for name in options):
            yield
            return
        given = {name: model.init_args[name] for name in options}
        model.init_args.update(Namespace(**options))
        yield
        model.init_args.update(Namespace(**given))

    @contextlib.contextmanager
    def _without_weights(self) -> Any:
        """For a plan only the shapes matter: where the model can be built without weights, build it so."""
        model: Namespace = self._get(self.config, "model")
        if "random_weights" not in (model.get("init_args") or {}):
            yield
            return
        model.init_args.random_weights = True
        with torch.device("meta"):
            yield

    def _print_plan(self) -> None:
        if self.run.rank != 0 and self._get(self.config, "trainer.strategy.init_args.site") is None:
            return
        settings = getattr(self.trainer.strategy, "settings", None)
        if settings is None:
            raise ConfigurationError(
                f"--dry-run needs a ParaBlock strategy; give --strategy and one of {', '.join(PRESETS)}"
            )
        if self._get(self.config, "trainer.strategy").get("init_args", {}).get("seed") is None:
            settings = dataclasses.replace(settings, seed=self._get(self.config, "seed_everything"))
        n_ranks = self.trainer.num_devices * self.trainer.num_nodes
        print_plan(console(), self.model, settings, n_ranks, self._describe_data(n_ranks))

    def _describe_data(self, n_ranks: int) -> dict[str, Any] | None:
        """What the data module says of the first client's data; nothing where it says nothing."""
        data: Any = self.datamodule
        if data is None or not hasattr(data, "describe"):
            return None
        self.model.trainer = data.trainer = self.trainer
        self.trainer.strategy.connect(self.model)
        cluster = getattr(self.trainer.strategy, "cluster_environment", None)
        if cluster is not None:  # otherwise known only once the processes have been started
            cluster.set_world_size(n_ranks)
        data.prepare_data()
        data.setup("fit")
        return data.describe()


class _Configuration(ParaBlockCLI):
    """The command line read and checked, and nothing built."""

    @override
    def _set_seed(self) -> None:
        pass

    @override
    def instantiate_classes(self) -> None:
        self._dump_config()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def read_configuration(args: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a command line, as its run's manifest would have it.

    Raises:
        ConfigurationError: a setting of the strategy is wrong.
        SystemExit: a word of the command line is wrong; the parser has said so.
    """
    return _Configuration(Run(), args).config_dump


def _add_fit_arguments(parser: LightningArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print clients, blocks, bytes a round, memory, the first rounds and the data, and stop before training.",
    )
    parser.add_argument(
        "--validate_before_and_after",
        type=bool,
        default=True,
        help="Measure the held-out loss before and after training, where there are validation data.",
    )


def _refuse_more_shared(shared: Shared, sights: Sequence[ClientSight]) -> None:
    """What a client tells is what the option says, or less: never more by a callback that says nothing of it."""
    strict = get_args(Shared)
    for sight in sights:
        if strict.index(sight.shared) < strict.index(shared):
            raise ConfigurationError(
                f"--shared {shared}, but the ClientSight in trainer.callbacks has shared={sight.shared!r}, which tells "
                f"more: give it shared: {shared}, too"
            )


def _refuse_forks(trainer: Trainer) -> Trainer:
    """Measuring and training are two launches, and what a forked process logs and records stays in it."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigurationError(
            "the command line starts its processes as whole programs: leave start_method at 'popen'; the others are "
            "for notebooks and scripts"
        )
    return trainer
