"""Every figure, drawn with matplotlib in one style."""
