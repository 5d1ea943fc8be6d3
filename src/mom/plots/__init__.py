"""Figures, drawn with matplotlib in one style."""
