"""Run folders: creation, files, manifest."""
