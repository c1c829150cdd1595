"""fit, validate, test and predict: LightningCLI with a run folder, and an exit code for every way to end."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.cli.app import ParaBlockCLI
from lightning_parablock.errors import ParaBlockError
from lightning_parablock.runs.run import Run
from lightning_parablock.system.exit_codes import FAILED, INTERRUPTED, TERMINATED, has_stuck_threads
from lightning_parablock.system.places import reason

_DISK = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT, errno.ENOTDIR)
"""Of files that cannot be written, or whose folder was removed."""


def run_trainer(args: Sequence[str]) -> int:
    """Run a command line of LightningCLI and return the exit code.

    Args:
        args: The command line without the program's name.
    """
    run = Run()
    try:
        ParaBlockCLI(run, args)
    except (ParaBlockError, ValueError) as error:
        known = _known_cause(error)
        if known is None:
            return _unexpected(run, error)
        return run.failed(known)
    except OSError as error:
        if not _of_the_disk(error, run):
            return _unexpected(run, error)
        return run.failed(ParaBlockError(f"{error.filename} cannot be written: {reason(error)}"))
    except KeyboardInterrupt:
        return run.interrupted("Ctrl-C", INTERRUPTED)
    except SIGTERMException:
        return run.interrupted("SIGTERM", TERMINATED)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return run.interrupted("Ctrl-C", INTERRUPTED)
        run.crashed(error)  # sys.exit in a module's or callback's code; before the run begins this records nothing
        raise
    except BaseException as error:
        return _unexpected(run, error)
    return run.finish()


def _known_cause(error: BaseException) -> ParaBlockError | None:
    """The package's own error; jsonargparse wraps one that a constructor raised into an error of its own."""
    while error.__cause__ is not None and not isinstance(error, ParaBlockError):
        error = error.__cause__
    return error if isinstance(error, ParaBlockError) else None


def _of_the_disk(error: OSError, run: Run) -> bool:
    """Whether a file in the run's folder could not be written; a traceback would add nothing."""
    if run.folder is None or not isinstance(error.filename, str) or error.errno not in _DISK:
        return False
    return Path(error.filename).resolve().is_relative_to(run.folder.resolve())


def _unexpected(run: Run, error: BaseException) -> int:
    """Record an unexpected error, whose traceback Python shows, and raise it again if the process can end."""
    run.crashed(error)
    if not has_stuck_threads():
        raise error
    traceback.print_exception(error)
    return FAILED
