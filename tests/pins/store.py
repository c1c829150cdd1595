"""Write every stored fact anew: ``python -m tests.pins.store``, in a folder of the checkout. This changes contracts.

``tests/data/format3.ckpt`` is of the format that its name says, and is never written over.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import torch

from tests.pins import configuration, runs, surface, wire
from tests.pins.stored import CHECKPOINT, store


def store_all(folder: Path) -> None:
    """Write the files, working in an empty folder."""
    availability = folder / "availability.txt"
    availability.write_text(surface.AVAILABILITY)
    store("fingerprints", surface.fingerprints(str(availability)))
    store("public_names", surface.public_names())
    store("parameters", surface.parameters())
    store("registry", surface.registry())
    store("commands", surface.commands())
    store("options", {command: surface.option_names(command) for command in (*surface.COMMANDS, *surface.SUBCOMMANDS)})
    store("plan_defaults", surface.plan_defaults())
    store("wire", {"messages": wire.messages(), "commit header": wire.commit_header(), "cuts": wire.cuts()})
    saved, rich = runs.saving_run(folder / "saving")
    presets = {name: runs.preset_bits(name, folder / name) for name in runs.PRESETS}
    store("bits", {"presets": presets, "rich run": rich})
    store("checkpoint", runs.layout_of(saved))
    if not CHECKPOINT.exists():
        shutil.copy(saved, CHECKPOINT)
        shutil.copytree(saved.with_name(f"{saved.name}.parablock"), f"{CHECKPOINT}.parablock")
    (folder / "cli").mkdir()
    configuration.STORED.write_text(configuration.written_by_a_run(folder / "cli"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        store_all(Path(scratch))
