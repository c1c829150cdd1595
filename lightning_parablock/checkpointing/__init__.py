"""Checkpoints and their sidecars: saving, loading, resuming, and the finished model."""
