"""Train, and everything else: ``python run.py --help``."""

import sys
from pathlib import Path

from mom.cli import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent / "conf"))
