"""Liveness of ranks: heartbeats, progress reports, guarded collectives, a common end of the run."""
