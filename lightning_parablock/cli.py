"""``lightning-parablock``: LightningCLI's fit, validate, test and predict, with this package's defaults.

lightning-parablock fit --config configs/quickstart.yaml --strategy parablock --strategy.local_steps 8
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.cli_app import ParaBlockCLI
from lightning_parablock.errors import ParaBlockError
from lightning_parablock.report.run import INTERRUPTED, TERMINATED, Run


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 for a failed run, 2 for wrong usage, 130 for Ctrl-C."""
    _hush()
    run = Run()
    try:
        ParaBlockCLI(run, sys.argv[1:] if args is None else args)
    except ParaBlockError as error:
        return run.failed(error)
    except KeyboardInterrupt:
        return run.interrupted("Ctrl-C", INTERRUPTED)
    except SIGTERMException:
        return run.interrupted("SIGTERM", TERMINATED)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return run.interrupted("Ctrl-C", INTERRUPTED)
        raise
    except BaseException as error:
        run.crashed(error)
        raise
    run.finish()
    return 0


def _hush() -> None:
    """Leave out advertisements of other packages, and warnings about code that is not the user's to change."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in str(record.msg))
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")


if __name__ == "__main__":
    sys.exit(main())
