"""Training with Lightning: the module, optimizer groups, checkpoints, loggers, one phase of fitting."""
