"""Reports on runs: plan and dry run, final table, HTML page."""
