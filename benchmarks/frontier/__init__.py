"""bench_frontier: what is compared, one client's fit, the arithmetic, and how it is shown."""
