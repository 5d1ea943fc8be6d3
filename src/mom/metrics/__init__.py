"""Definitions of the metrics: names and labels, sums, depth, routing, and the scores of GLUE."""
