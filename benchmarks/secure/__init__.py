"""bench_secure: what secure sums cost in time, bytes and loss, beside Flower's SecAgg+."""
