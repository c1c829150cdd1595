"""bench_steal: figures and picture."""
