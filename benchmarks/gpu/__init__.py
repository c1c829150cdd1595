"""bench_gpu: memory and copies on a CUDA device, and the picture."""
