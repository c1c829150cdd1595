"""The one place that uses private names of Lightning: each behind a function that says why, and what breaks without it.

A room rather than a file, since what it takes over belongs to seven parts of Lightning. Nothing here checks whether a
name is there: a version of Lightning without it must fail here, loudly, and in the test that lists the names.
"""
