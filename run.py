"""The command ``mom`` of this checkout: ``python run.py --help``."""

# Hydra's completion for `python run.py` looks for the word @hydra.main here.
import sys

from mom.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
