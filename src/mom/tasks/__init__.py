"""The tasks, one module each.

A module has the task's name and a function ``run(config, run)``, which takes the request and the run directory and
returns the flat summary that becomes ``summary.json``.
"""
