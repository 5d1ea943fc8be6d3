"""The tasks: one module each, with ``run(config, run) -> summary``."""
