"""bench_scale: what the planner's probe measures, and the picture."""
