"""Reports of a run: the plan before it, the table after it, and the page of its folder."""
