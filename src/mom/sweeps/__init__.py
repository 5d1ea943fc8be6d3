"""Sweeps and searches: their jobs, the processes that run them, and what is printed about them."""
