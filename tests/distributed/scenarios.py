"""Scenarios for one rank: ``python -m tests.distributed.scenarios <scenario> <folder> …``.

The tests also import this module, to run the same phases in one process for comparison.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities import rank_zero_only

from mom.callbacks.non_finite import NonFiniteError
from mom.config import bind
from mom.data.language_modeling import LanguageModelingDataModule
from mom.errors import UsageError
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.tasks import finetune
from mom.training import fit
from mom.training.checkpoint import (
    LAST,
    AtomicCheckpointIO,
    ResumePoint,
    last_checkpoint,
    read_checkpoint,
)
from mom.training.fit import fit_phase
from mom.training.sharding import initialized_once
from tests.helpers.checkpoints import request as config_groups
from tests.helpers.glue_files import write_glue
from tests.helpers.runs import CHANGES, OPTIMIZER, tiny_request
from tests.helpers.texts import some_texts, write_jsonl

STEPS = 4

# Changes to a request that trains on 4 windows per micro-batch, on one rank or two.
EQUAL: dict[str, dict[str, Any]] = {
    "plainly": {},
    "balance": {"router": {"balance_scope": "global", "balance_coefficient": 1.0}},
    "accumulation": {
        "trainer": {"accumulate_grad_batches": 2},
        "router": {"balance_scope": "global", "balance_coefficient": 1.0, "balance_skip": False},
    },
    "bias": {
        "trainer": {"accumulate_grad_batches": 2, "activation_checkpointing": True},
        "router": {"balance_bias_rate": 0.05, "balance_coefficient": 0.0},
    },
    "settling": {
        "trainer": {"accumulate_grad_batches": 2},
        "model": {"top_k": 1},
        "router": {"settle_steps": 2, "skip_exploration": 0.0, "skip_trials": 0.0},  # as below
    },
    # Round h can use only module h mod 6 of 6: with 3 rounds, three modules never get a token.
    "starved": {
        "model": {"schedule": "layerwise", "num_ffn_modules": 6, "num_attention_modules": 6, "top_k": 1},
        "router": {"skip_exploration": 0.0, "skip_trials": 0.0},  # ranks draw different tokens
    },
    "checkpointing": {
        "trainer": {"activation_checkpointing": True},
        "callbacks": {"figures": {"_target_": "mom.callbacks.RoutingFigures", "dpi": 30}},
    },
}


def request(folder: Path, world_size: int, **changes: Any) -> Any:
    """Return the tiny request on ``world_size`` processes, with 4 windows per micro-batch in total."""
    trainer = {"max_steps": STEPS, "val_check_interval": 3, "devices": world_size}
    if world_size > 1:
        trainer["strategy"] = "ddp"
    groups = {
        "trainer": trainer | changes.pop("trainer", {}),
        "data": {"batch_size": 4 // world_size} | changes.pop("data", {}),
        # With a smaller epsilon, rounding errors in tiny gradients would determine the size of a step.
        "optimizer": {"eps": 1e-3} | changes.pop("optimizer", {}),
    }
    return tiny_request(folder, **groups, **changes)


def train(
    config: Any,
    directory: Path,
    *,
    resume: bool = False,
    extra: tuple[Callback, ...] = (),
    point: ResumePoint | None = None,
) -> dict[str, float]:
    """Train one phase of a request, from its last checkpoint if it resumes, or from a given one."""
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    seed_everything(config.seed, verbose=False)
    with initialized_once(config.trainer.strategy):
        model = MoMForCausalLM(config.model_config(data.vocab_size))
    build = fit.build_callbacks
    fit.build_callbacks = lambda *given: [*extra, *build(*given)]
    try:
        return fit_phase(
            config,
            model,
            data,
            RunDirectory(directory),
            phase="mom",
            max_steps=config.trainer.max_steps,
            resume=last_checkpoint(directory / "checkpoints") if resume else point,
        )
    finally:
        fit.build_callbacks = build


def is_timed(metric: str) -> bool:
    """Return whether a metric depends on time, or on the tokens of one rank, and so differs between runs."""
    return metric.startswith("throughput/") and metric != "throughput/tokens"


class KillAt(Callback):
    """Kills this process with SIGKILL after ``step`` steps and ``batch`` more micro-batches."""

    def __init__(self, step: int, batch: int = 0) -> None:
        self.step, self.left = step, batch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self.step:
            if self.left == 0:
                self.kill()
            self.left -= 1

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Diverge(Callback):
    """Makes the last LayerNorm return NaN in the third micro-batch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            pl_module.model.model.norm.register_forward_hook(lambda *given: given[-1] * float("nan"))


RESUMED = {"model": {"dropout": 0.1}, "trainer": {"max_steps": 6, "accumulate_grad_batches": 2}}


def equal(folder: Path) -> None:
    """Train every entry of EQUAL on two ranks, the reference for resuming, differing requests, and a diverging run."""
    rank = int(os.environ["RANK"])
    for name, changes in EQUAL.items():
        train(request(folder, 2, **changes), folder / f"two-{name}")
    train(request(folder, 2, **RESUMED), folder / "reference")
    differing = request(folder, 2, optimizer={"lr": 1e-2 if rank == 0 else 1e-3})
    try:
        train(differing, folder / "differing")
    except UsageError as raised:
        (folder / f"error-{rank}.txt").write_text(str(raised))
    other_files(folder)
    try:
        extra = (Diverge(),) if rank == 1 else ()
        train(request(folder, 2, **EQUAL["accumulation"]), folder / "diverging", extra=extra)
    except NonFiniteError as error:
        (folder / f"divergence-{rank}.txt").write_text(str(error))
    train_sharded(folder)


def other_files(folder: Path) -> None:
    """Train with a file of another content on each rank, and resume from another checkpoint on each."""
    rank = int(os.environ["RANK"])
    own = folder / f"node-{rank}"
    own.mkdir()
    write_jsonl(own / "texts.jsonl", some_texts(40 + rank))
    tokenizer = str(folder / "reference" / "tokenizer")
    here = Path.cwd()
    for name in ("data", "checkpoint"):
        os.chdir(own)
        changed = {"path": "texts.jsonl", "tokenizer": tokenizer} if name == "data" else {}
        config = request(folder, 2, **RESUMED, data=changed)
        point = None
        if name == "checkpoint":
            saved = torch.load(folder / "reference" / "checkpoints" / LAST, weights_only=True)
            saved["state_dict"]["model.model.norm.weight"] += rank
            torch.save(saved, LAST)
            point = read_checkpoint(LAST)._replace(results=None)
        try:
            train(config, folder / f"other-{name}", point=point)
        except UsageError as raised:
            (folder / f"other-{name}-{rank}.txt").write_text(str(raised))
        os.chdir(here)
    other_split(folder, own)


def other_split(folder: Path, own: Path) -> None:
    """Fine-tune with the same training rows on each rank, but other validation rows."""
    rank = int(os.environ["RANK"])
    write_glue(own, "rte", {"train": 6, "dev": 4 + 2 * rank, "test": 3})
    options = {"name": "finetune", "epochs": 1.0}
    data = {"kind": "glue", "path": "RTE", "name": "rte", "sequence_length": 16, "batch_size": 2}
    groups = config_groups(
        own,
        options,
        data=data,
        init=str(folder / "reference" / "checkpoints" / LAST),
        optimizer=OPTIMIZER | {"betas": [0.9, 0.95]},
        trainer={"max_steps": 2, "devices": 2, "strategy": "ddp"},
    )
    groups["run_dir"] = str(folder / "other-split")
    here = Path.cwd()
    os.chdir(own)
    try:
        finetune.run(bind(groups), RunDirectory(groups["run_dir"]))
    except UsageError as raised:
        (folder / f"other-split-{rank}.txt").write_text(str(raised))
    os.chdir(here)


class Shares(Callback):
    """Checks that only rank 0 ever has all weights, that each rank ends up with about half of them, and that they equal
    the initial weights of a single process bit for bit."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.global_rank > 0:  # the meta device stores no data
            assert all(parameter.is_meta for parameter in pl_module.model.parameters())

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        model = pl_module.model
        mine = sum(parameter.to_local().numel() for parameter in model.parameters())
        assert 0.4 < mine / sum(parameter.numel() for parameter in model.parameters()) < 0.6
        assert model.lm_head.weight is model.model.embedding.token.weight
        weights = {name: weight.full_tensor() for name, weight in model.named_parameters()}
        if trainer.global_step == 0:
            with torch.random.fork_rng():
                seed_everything(1, verbose=False)
                alone = MoMForCausalLM(model.config)
            for name, weight in alone.named_parameters():
                assert torch.equal(weights[name], weight), name
            for name, buffer in alone.named_buffers():
                assert torch.equal(model.get_buffer(name), buffer), name


def train_sharded(folder: Path) -> None:
    """Train sharded over two ranks, stop, and resume, with a global balance loss and accumulation."""
    for steps in (2, STEPS):
        changes = EQUAL["accumulation"]["trainer"] | {"strategy": "fsdp", "max_steps": steps}
        config = request(
            folder, 2, **EQUAL["accumulation"] | {"trainer": changes, "optimizer": {"schedule": "constant"}}
        )
        train(config, folder / "sharded", resume=steps == STEPS, extra=(Shares(),))
    two_phases(folder, "two-phases-sharded", 2)


def two_phases(folder: Path, name: str, world_size: int) -> None:
    """Pretrain a model whose rounds reach only some modules, sharded if there are several ranks."""
    from mom.tasks import pretrain

    changes: dict[str, Any] = {
        "task": {"plain_steps": 2, "baseline": False},
        "trainer": {"max_steps": 2},
        "model": {"schedule": "grouped"},
        "run_dir": str(folder / name),
    }
    if world_size > 1:
        changes["trainer"]["strategy"] = "fsdp"
    pretrain.run(request(folder, world_size, **changes), RunDirectory(folder / name))


def dying(folder: Path) -> None:
    """Kill rank 1 during gradient accumulation, after the first validation."""
    extra = (KillAt(4, batch=1),) if os.environ["RANK"] == "1" else ()
    train(request(folder, 2, **RESUMED), folder / "killed", extra=extra)


def resumed(folder: Path) -> None:
    """Resume the killed run."""
    train(request(folder, 2, **RESUMED), folder / "killed", resume=True)


def pretraining(folder: Path, name: str, phase: str) -> None:
    """Pretrain on one process that is killed during gradient accumulation in one of the phases."""
    _pretrain(folder, name, lambda its: [KillAt(3, 1)] if its == phase else [])


def saving(folder: Path, name: str) -> None:
    """Pretrain on one process that is killed right after renaming the first ``last.ckpt``, within a training step."""
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_die(self: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(self, checkpoint, path, storage_options)
        if Path(path).name == LAST:
            os.kill(os.getpid(), signal.SIGKILL)

    AtomicCheckpointIO.save_checkpoint = save_and_die  # type: ignore[method-assign]
    _pretrain(folder, name, lambda its: [])


def _pretrain(folder: Path, name: str, extra: Callable[[str], list[Callback]]) -> None:
    from mom.tasks import pretrain

    build = fit.build_callbacks
    fit.build_callbacks = lambda config, its, logs: [*extra(its), *build(config, its, logs)]
    config = tiny_request(folder, run_dir=str(folder / name), **CHANGES)
    pretrain.run(config, RunDirectory(folder / name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank_zero_only.rank = int(
        os.environ["RANK"]
    )  # which Lightning reads when it is imported, before the fork
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
