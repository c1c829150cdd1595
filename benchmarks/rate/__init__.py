"""bench_rate: the problem, one run on it, figures and picture."""
