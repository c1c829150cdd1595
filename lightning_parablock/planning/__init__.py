"""Resource needs of a run: bytes, memory and seconds, by formulas shared by plans and runs."""
