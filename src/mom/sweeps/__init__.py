"""Sweeps and searches: jobs, the processes that run them, and console output."""
