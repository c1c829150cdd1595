"""What benchmarks share: workers, jobs, statistics, result files and pictures."""
