"""Export of the trained model to a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.callbacks.gather import place_here


class HuggingFaceExport(Callback):
    """Writes the committed model to a Hugging Face folder when fit has ended, after the last exchange.

    The first rank writes it; where sites have names, every site writes it to a subfolder with its name. Works for
    CausalLM and for every LightningModule that has one transformers model as an attribute. A run that fails or is
    interrupted leaves no folder.

    Args:
        folder: Folder to create, with configuration, safetensors and tokenizer.
        overwrite: Replace ``folder`` if it exists; otherwise a folder that is not empty is refused before training.
        tokenizer: Add the tokenizer: CausalLM's own, else the attribute ``tokenizer`` of the module or its data module.

    Raises:
        ConfigurationError: before training: the folder is not empty, the module has no transformers model or several,
            or CausalLM's tokenizer cannot be found.
    """

    def __init__(self, folder: str, overwrite: bool = False, tokenizer: bool = True) -> None:
        self._folder = Path(folder)
        self._overwrite = overwrite
        self._with_tokenizer = tokenizer

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Imported late: importing transformers' models takes seconds, and most runs do not need them.
        from lightning_parablock.models.export import refuse_contents, the_network, the_tokenizer

        if stage != "fit":
            return
        the_network(pl_module)
        folder = place_here(trainer, self._folder)
        if folder is not None:
            refuse_contents(folder, self._overwrite)
            if self._with_tokenizer:
                the_tokenizer(pl_module, getattr(trainer, "datamodule", None))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from lightning_parablock.models.export import the_network, the_tokenizer, write_model_folder

        folder = place_here(trainer, self._folder)
        if folder is None:
            return
        data = getattr(trainer, "datamodule", None)
        tokenizer = the_tokenizer(pl_module, data) if self._with_tokenizer else None
        write_model_folder(folder, the_network(pl_module), tokenizer, overwrite=self._overwrite)
