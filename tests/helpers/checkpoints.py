"""Run directories with a checkpoint and a tokenizer, created without training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from mom.data.tokenizer import save_tokenizer, train_tokenizer
from mom.model import MoMForCausalLM, MoMForSequenceClassification
from mom.runs.directory import RunDirectory
from tests.helpers.models import small_model
from tests.helpers.texts import some_texts

VOCABULARY = 300


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 300 tokens, the same at every call."""
    return train_tokenizer(some_texts(40), VOCABULARY)


def write_run(
    folder: Path,
    model: MoMForCausalLM | MoMForSequenceClassification | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **changes: Any,
) -> Path:
    """Write a run directory with a checkpoint and its tokenizer; return the checkpoint's path."""
    tokenizer = tokenizer or small_tokenizer()
    if model is None:
        model = small_model(**{"vocab_size": VOCABULARY, "max_positions": 64, **changes})
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    checkpoint = {
        "state_dict": {f"model.{name}": weight for name, weight in model.state_dict().items()},
        "hyper_parameters": {"model_config": model.config.to_dict()},
    }
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    save_tokenizer(tokenizer, RunDirectory(folder))
    return path


def request(folder: Path, task: dict[str, Any], **groups: Any) -> dict[str, Any]:
    """Return the groups of a request for a task on the CPU, with the next unused ``folder/run<n>``."""
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    number = next(n for n in itertools.count() if not (folder / f"run{n}").exists())
    return {
        "task": task,
        "run_dir": str(folder / f"run{number}"),
        **groups,
        "trainer": trainer | groups.get("trainer", {}),
    }
