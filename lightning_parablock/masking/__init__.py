"""Secure aggregation: integers instead of deltas, and masks that cancel in their sum."""
