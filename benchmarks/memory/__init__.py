"""bench_memory: the peak of one process, and the picture."""
