"""bench_codecs: the timed codecs, their residuals, and the picture."""
