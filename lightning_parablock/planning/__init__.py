"""What a run takes: bytes, memory and seconds, from the shapes alone. Plans and runs share these formulas."""
