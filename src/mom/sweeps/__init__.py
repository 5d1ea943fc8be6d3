"""Sweeps: jobs that are processes, started, skipped, resumed and reported."""
