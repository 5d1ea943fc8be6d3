"""Requests of any size, made small enough to run in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tests.helpers.checkpoints import VOCABULARY
from tests.helpers.glue_files import FOLDERS, write_glue
from tests.helpers.texts import some_texts, write_jsonl

REDUCED = {
    "model": {"d_model": 16, "num_heads": 2, "max_positions": 32},
    "router": {"router_dim": 8},
    "optimizer": {"warmup_steps": 1},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "limit_val_batches": 1,
        "accumulate_grad_batches": 1,
        "enable_progress_bar": False,
    },
}


def reduce(config: DictConfig, folder: Path, start: Path, *, figures: bool = False) -> DictConfig:
    """The same request, narrow and for two steps, on texts of the test's own and from the test's own phase 1.

    Drawing its figures would take half of the time.
    """
    OmegaConf.set_struct(config, False)
    changes: dict[str, Any] = {**REDUCED, "run_dir": str(folder / "run")}
    if config.data.kind == "glue":
        changes["data"] = {"path": str(folder / "glue"), "batch_size": 2, "sequence_length": 16}
        changes["task"] = {"epochs": 1.0, "seeds": [0, 1]}
        for name in FOLDERS:
            write_glue(folder / "glue", name)
    elif config.data.kind == "control":
        changes["data"] = {"batch_size": 4}
        changes["model"] = REDUCED["model"] | {"max_positions": config.model.max_positions}
    else:
        changes["data"] = {
            "corpus": "text",
            "path": str(write_jsonl(folder / "texts.jsonl", some_texts(40))),
            "cache_dir": str(folder / "cache"),
            "tokenizer_vocab_size": VOCABULARY,
            "tokenizer": None if config.init is None else str(start.parents[1] / "tokenizer"),
            "sequence_length": 16,
            "batch_size": 2,
            "validation_fraction": 0.3,
            "num_processes": 1,
        }
        if config.task.get("plain_steps"):
            changes["task"] = {"plain_steps": 1, "plain_warmup_steps": None}
    if config.init is not None:
        changes["init"] = str(start)
    changes["callbacks"] = {"figures": None} if config.callbacks and not figures else {}
    growth = config.callbacks.get("top_k")
    if growth is not None and growth["start"] is not None:
        changes["callbacks"]["top_k"] = {"last_step": 1}
    reduced = OmegaConf.merge(config, changes)
    assert isinstance(reduced, DictConfig)
    return reduced
