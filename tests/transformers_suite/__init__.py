"""transformers' own model tests, run on our models by ``make transformers-tests``."""
