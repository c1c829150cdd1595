"""bench_quality: the picture."""
