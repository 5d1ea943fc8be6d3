"""Definitions of the metrics: their names, the sums behind them, depth and the use of modules."""
