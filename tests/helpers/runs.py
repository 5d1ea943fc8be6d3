"""Requests and data small enough to train in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from mom.config import RunConfig, bind
from mom.model import MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule
from tests.helpers.models import small_config
from tests.helpers.texts import some_texts, write_jsonl

OPTIMIZER = {
    "lr": 1e-2,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
    "eps": 1e-5,
    "warmup_steps": 2,
    "min_lr_ratio": 0.1,
    "router_lr_multiplier": 1.0,
    "schedule": "cosine",
}
CALLBACKS = {
    "checkpoint": {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        "monitor": "val/loss",
        "filename": "best",
        "enable_version_counter": False,
    },
    "throughput": {"_target_": "mom.callbacks.ThroughputMonitor"},
    "effective_depth": {"_target_": "mom.callbacks.EffectiveDepth"},
    "routing_statistics": {"_target_": "mom.callbacks.RoutingStatistics"},
    "routing_paths": {"_target_": "mom.callbacks.RoutingPaths", "every_n_steps": 2},
}
SMALL_MODEL = {
    "max_positions": 16,
    "d_model": 16,
    "num_heads": 2,
    "num_bottom_blocks": 1,
    "num_top_blocks": 1,
    "num_attention_modules": 2,
    "num_ffn_modules": 2,
    "num_rounds": 3,
}


def tiny_request(folder: Path, **changes: Any) -> RunConfig:
    """Return a request that trains on texts written to ``folder``; ``changes`` are merged into its groups."""
    texts = folder / "texts.jsonl"
    if not texts.exists():
        write_jsonl(texts, some_texts(40))
    groups: dict[str, Any] = {
        "task": {"name": "pretrain", "plain_steps": 2, "baseline": True},
        "model": SMALL_MODEL,
        "router": {
            "router": "gru",
            "router_dim": 8,
            "router_prior": "none",
            "balance_coefficient": 0.01,
            "skip_trials": 0.0,
        },
        "data": {
            "corpus": "text",
            "path": str(texts),
            "cache_dir": str(folder / "cache"),
            "tokenizer_vocab_size": 300,
            "sequence_length": 16,
            "batch_size": 2,
            "validation_fraction": 0.3,
            "num_processes": 1,
        },
        "optimizer": OPTIMIZER | {"betas": [0.9, 0.95]},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "val_check_interval": 3,
            "limit_val_batches": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "callbacks": CALLBACKS,
        "logger": {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "", "version": ""}},
        "run_dir": str(folder / "run"),
        "seed": 1,
    }
    if "_target_" in changes.get("optimizer", {}):
        groups["optimizer"] = {"lr": 1e-2, "warmup_steps": 2}  # without the options of AdamW
    for name, value in changes.items():
        groups[name] = groups[name] | value if isinstance(value, dict) and name in groups else value
    return bind(groups)


class FixedBatches(LightningDataModule):
    """Data module of the given batches, in order."""

    validation_bytes_per_token = 2.0

    def __init__(self, train: list[dict], validation: list[dict]) -> None:
        super().__init__()
        self._train, self._validation = train, validation

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self._train, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._validation, batch_size=None)


def token_batch(seed: int, rows: int = 2, length: int = 8, padded: int = 0) -> dict[str, torch.Tensor]:
    """Return random tokens with ``padded`` padding positions at the end of the first row."""
    ids = torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(seed))
    batch = {"input_ids": ids, "labels": ids.clone()}
    if padded:
        mask = torch.ones_like(ids)
        mask[0, -padded:] = 0
        batch |= {"attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return batch


def small_module(
    seed: int = 0, optimizer: dict[str, Any] | None = None, **changes: Any
) -> LanguageModelingModule:
    """Return a small model's Lightning module."""
    torch.manual_seed(seed)
    config = small_config(**({"initializer_range": 0.5} | changes))  # routes differ from token to token
    options = OPTIMIZER | (optimizer or {})
    return LanguageModelingModule(config.to_dict(), options, MoMForCausalLM(config), bytes_per_token=2.0)


class Recorder(Callback):
    """Records the outputs of every batch, and the metrics logged after every training batch."""

    def __init__(self) -> None:
        self.train_outputs: list[dict] = []
        self.validation_outputs: list[dict] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.train_outputs.append(outputs)
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.validation_outputs.append(outputs)


def plain_trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    """Return a CPU Trainer without loggers, checkpoints, and console output."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(**(defaults | options), callbacks=callbacks, default_root_dir=folder)


def write_record(
    folder: Path, options: dict[str, Any], summary: dict[str, Any], state: str = "succeeded"
) -> None:
    """Write a run directory like that of the command line, from dotted options."""
    config: dict[str, Any] = {"task": {"name": "pretrain"}, "seed": 0, "run_dir": str(folder)}
    for name, value in options.items():
        group, _, inner = name.rpartition(".")
        (config.setdefault(group, {}) if group else config)[inner] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    error = None if state == "succeeded" else {"type": "ValueError", "message": "loss\nis NaN"}
    (folder / "status.json").write_text(json.dumps({"state": state, "error": error}))
    (folder / "summary.json").write_text(json.dumps(summary))


def write_grid(root: Path, seeds: int = 3) -> pd.DataFrame:
    """Write runs of two routers (one with its own prior), two values of K, and some seeds; return them as a table."""
    draw = np.random.default_rng(0)
    rows = []
    for router in ("gru", "mlp"):
        for top_k in (1, 2):
            for seed in range(seeds):
                plain, gain = 4 + 0.1 * seed, draw.normal(0.1 * top_k, 0.03)
                row = {"router": router, "top_k": top_k, "seed": seed, "loss": plain - gain, "plain": plain}
                prior = {"gru": "none", "mlp": "looped"}[router]
                options = {
                    "router.router": router,
                    "router.router_prior": prior,
                    "model.top_k": top_k,
                    "seed": seed,
                }
                summary = {"val/loss": row["loss"], "baseline/val/loss": plain}
                write_record(root / str(len(rows)), options, summary)
                rows.append(row)
    return pd.DataFrame(rows)


SCHEDULE = {"_target_": "mom.callbacks.Schedule"}

CHANGES = {
    "model": {"dropout": 0.1},
    "callbacks": {
        "gumbel_noise": SCHEDULE | {"name": "gumbel_noise", "start": 1.0, "last_step": 4},
        "top_k": SCHEDULE | {"name": "top_k", "start": 1, "curve": "step", "last_step": 4},
    },
    "router": {"balance_bias_rate": 0.05},
    "task": {"plain_steps": 5},
    "trainer": {"max_steps": 5, "accumulate_grad_batches": 2, "val_check_interval": 3},
}
"""Changes to :func:`tiny_request` for a short pretraining in three phases."""
