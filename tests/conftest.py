"""For every test: no network, a cache of their own, and PyTorch on one thread."""

from __future__ import annotations

import sys

import absl.logging

# absl (of rouge-score and tensorboard) remembers the stderr it was imported under, pytest's own capture file, and
# closes it when Hydra sets up logging in a test that captures differently. This one it leaves open.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

import atexit
import os
import shutil
import tempfile

# Set before anything imports the libraries that read them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
_cache = tempfile.mkdtemp(prefix="mom-cache-")
os.environ["MOM_CACHE"] = _cache
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
