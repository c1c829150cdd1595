"""bench_overlap: which link rate gives which M/C, and the picture."""
