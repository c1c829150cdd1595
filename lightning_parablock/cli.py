"""``lightning-parablock``: LightningCLI's fit, validate, test and predict, with this package's defaults.

lightning-parablock fit --config configs/quickstart.yaml --strategy parablock --strategy.local_steps 8
lightning-parablock train.py fit --strategy parablock    (a script that knows nothing of this package)
lightning-parablock export --ckpt_path last.ckpt --output model
lightning-parablock evaluate --ckpt_path last.ckpt --data.source gsm8k_test.jsonl --data.format gsm8k
lightning-parablock compare --config configs/quickstart.yaml --trainer.devices 2 --strategies parablock,fedavg,fedit
lightning-parablock report runs/20260131-120000
lightning-parablock plan --model llama3-8b --clients 10 --rate 1gbit --step_s 2.5 --dtype bfloat16
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.cli_app import ParaBlockCLI
from lightning_parablock.cli_compare import COMPARE, run_compare
from lightning_parablock.cli_evaluate import EVALUATE, run_evaluate
from lightning_parablock.cli_export import EXPORT, run_export
from lightning_parablock.cli_plan import PLAN, run_plan
from lightning_parablock.cli_report import REPORT, run_report
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.launched import adopt_mpi
from lightning_parablock.launcher import end_others
from lightning_parablock.report.run import FAILED, INTERRUPTED, TERMINATED, USAGE, Run
from lightning_parablock.scripts import is_script, run_script

COMMANDS = {
    COMPARE: run_compare,
    EVALUATE: run_evaluate,
    EXPORT: run_export,
    PLAN: run_plan,
    REPORT: run_report,
}
"""Those that are none of LightningCLI's."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for a failed run, 2 for wrong usage, 130 for Ctrl-C.

    A script has the exit code of its own.
    """
    words = list(sys.argv[1:] if args is None else args)
    code = _main(words)
    if code:
        end_others()
    if code and _has_stuck_threads():
        _leave(code)
    return code


def _main(args: list[str]) -> int:
    try:
        adopt_mpi()
        if args and is_script(args[0]):
            return run_script(Path(args[0]), args[1:])
        if args and args[0] in COMMANDS:
            _hush()
            COMMANDS[args[0]](args[1:])
            return 0
    except ParaBlockError as error:
        sys.stderr.write(f"error: {error}\n")
        return USAGE if isinstance(error, ConfigurationError) else FAILED
    return _run_command(args)


def _run_command(args: list[str]) -> int:
    _hush()
    run = Run()
    try:
        ParaBlockCLI(run, args)
    except (ParaBlockError, ValueError) as error:
        known = _known_cause(error)
        if known is None:
            return _unexpected(run, error)
        return run.failed(known)
    except KeyboardInterrupt:
        return run.interrupted("Ctrl-C", INTERRUPTED)
    except SIGTERMException:
        return run.interrupted("SIGTERM", TERMINATED)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return run.interrupted("Ctrl-C", INTERRUPTED)
        raise
    except BaseException as error:
        return _unexpected(run, error)
    run.finish()
    return 0


def _known_cause(error: BaseException) -> ParaBlockError | None:
    """The package's own error; jsonargparse wraps one that a constructor raised into an error of its own."""
    while error.__cause__ is not None and not isinstance(error, ParaBlockError):
        error = error.__cause__
    return error if isinstance(error, ParaBlockError) else None


def _unexpected(run: Run, error: BaseException) -> int:
    """Record an error that nobody expected, whose traceback Python shows, and raise it again if the process can end."""
    run.crashed(error)
    if not _has_stuck_threads():
        raise error
    traceback.print_exception(error)
    return FAILED


def _has_stuck_threads() -> bool:
    return any(thread.name.startswith("parablock-") for thread in threading.enumerate())


def _leave(code: int) -> None:
    """End the process here, because a thread is stuck in a receive from a client that is lost.

    Nothing can free such a thread, and Python's own way out aborts when the thread wakes up in the middle of it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _hush() -> None:
    """Leave out advertisements of other packages, and warnings about code that is not the user's to change."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in str(record.msg))
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


if __name__ == "__main__":
    sys.exit(main())
