"""A run on disk: its directory, its files, what it recorded, and how runs compare."""
