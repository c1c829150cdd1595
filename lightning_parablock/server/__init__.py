"""Deltas in, commit out: the server's optimizers and its shard of the model W."""
