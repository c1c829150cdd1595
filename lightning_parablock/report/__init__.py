"""What a run tells about itself: the plan before it, the manifest beside its logs, the table after it."""
