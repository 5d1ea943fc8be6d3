"""Training with Lightning: the module, optimiser groups, checkpoints, loggers, one phase of fitting."""
