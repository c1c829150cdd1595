"""Batches of training, validation and prediction for each client: shards, lengths, positions, sample counts."""
