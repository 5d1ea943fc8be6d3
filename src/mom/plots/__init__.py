"""All figures, drawn with matplotlib in one style."""
