"""bench_claims: methods, data, one client's fit, figures and picture."""
