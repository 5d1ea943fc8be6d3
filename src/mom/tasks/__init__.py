"""One module per task; each has ``run(config, directory) -> summary``."""
