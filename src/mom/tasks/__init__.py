"""The tasks, one module each.

Each module is named after its task and has a function ``run(config, run)``, which takes the request and the run
directory and returns the content of ``summary.json``.
"""
