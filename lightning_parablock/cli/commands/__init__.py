"""The commands of ``lightning-parablock`` that are not LightningCLI's."""
