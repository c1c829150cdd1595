"""lightning-parablock: federated block coordinate fine-tuning under PyTorch Lightning, by one flag."""

__version__ = "0.1.0"
