"""Pre-train a language model: plain, or Mixture-of-Modules in the paper's two phases (DESIGN §2)."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from lightning.pytorch import seed_everything

from mom.callbacks.figures import FOLDER as FIGURES
from mom.config import DataConfig, PretrainConfig, RunConfig
from mom.console import announce, print_report
from mom.data.language_modeling import LanguageModelingDataModule
from mom.evaluation.report import results_table
from mom.interop import UpcyclingPlan, load_model, plain_config
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.checkpoint import CHECKPOINTS, LAST, ResumePoint, check_architecture
from mom.training.fit import fit_phase
from mom.training.phases import checkpoint_to_resume, finished_results, initialize_from, run_phase
from mom.training.sharding import initialized_once, is_sharded

Results = dict[str, float]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Train, validate, and report.

    With ``ckpt`` (or ``resume=auto`` and a ``last.ckpt`` in the run directory) the main phase goes on from
    there; ``resume=auto`` also takes up an earlier phase that was interrupted. Otherwise, where the model has
    stages, it starts from a plain transformer: the one of ``init``, or one trained here first for
    ``task.plain_steps`` steps (phase 1, in ``plain/``). That plain one is trained on for as many steps as the
    MoM (``task.baseline``, in ``baseline/``), with the same data order and schedule, for comparison.

    Args:
        config: the request.
        run: the run's directory.

    Returns:
        The flat summary: the main phase's results by their metric names, the others' with ``plain/`` and
        ``baseline/`` in front, ``data/fingerprint`` and the token counts.

    Raises:
        RequestError: on a checkpoint, weights or data that cannot be used, before anything is trained.
    """
    assert isinstance(config.task, PretrainConfig) and isinstance(config.data, DataConfig)
    resume = checkpoint_to_resume(config, run)
    if resume is not None:
        # Before the data is touched: everything but the vocabulary's size, which may be the tokenizer's.
        size = config.model.get("vocab_size") or resume.model_config["vocab_size"]
        check_architecture(resume, config.model_config(size).to_dict())
    initialized = partial(initialized_once, config.trainer.strategy)
    with initialized():
        start = None if config.init is None else load_model(config.init)

    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    model_config = config.model_config(data.vocab_size)
    model_config.bos_token_id = model_config.eos_token_id = data.tokenizer.eos_token_id

    others: dict[str, Results] = {}
    seed_everything(config.seed, workers=True, verbose=False)
    if resume is not None:
        check_architecture(resume, model_config.to_dict())
        with initialized():
            model = MoMForCausalLM(model_config)
        found = {phase: finished_results(run, phase) for phase in ("plain", "baseline")}
        others = {phase: results for phase, results in found.items() if results is not None}
    elif start is None and not (model_config.num_stages and config.task.plain_steps):
        with initialized():
            model = MoMForCausalLM(model_config)
    elif start is not None and (start.config.num_stages or not model_config.num_stages):
        with initialized():
            model = initialize_from(start, model_config)
    else:
        model, others = _from_plain(config, run, data, model_config, start)
    results = _train(config, run, data, model, resume)

    _print_table(results, others, run)
    return {
        **results,
        **{
            f"{phase}/{name}": value for phase, measured in others.items() for name, value in measured.items()
        },
        "data/fingerprint": data.fingerprint,
        "data/train_tokens": data.num_train_tokens,
        "data/validation_tokens": data.num_validation_tokens,
    }


def _from_plain(
    config: RunConfig,
    run: RunDirectory,
    data: LanguageModelingDataModule,
    model_config: MoMConfig,
    start: MoMForCausalLM | None,
) -> tuple[MoMForCausalLM, dict[str, Results]]:
    """Phase 1 unless ``start`` is it already, upcycling, and the baseline; returns the MoM to train."""
    assert isinstance(config.task, PretrainConfig)
    initialized = partial(initialized_once, config.trainer.strategy)
    others: dict[str, Results] = {}
    if start is None:
        with initialized():
            start = MoMForCausalLM(plain_config(model_config))
        announce(f"Phase 1: a plain transformer of {start.config.graph_depth} blocks")
        for where, layers in UpcyclingPlan.consecutive(model_config).describe():
            announce(f"  {layers} → {where}")
        others["plain"] = run_phase(
            _of_phase_1(config), start, data, run, phase="plain", max_steps=config.task.plain_steps
        )
        if is_sharded(start):  # this process has only its share
            with initialized():
                start = load_model(run.path / "plain" / CHECKPOINTS / LAST)
    # Seeded anew, so that phase 2 is the same whether phase 1 ran here or came by init.
    seed_everything(config.seed, workers=True, verbose=False)
    with initialized():
        model = initialize_from(start, model_config)  # copies, so training the baseline does not touch it
    if config.task.baseline:
        announce("Baseline: the plain transformer, trained on")
        steps = config.trainer.max_steps
        others["baseline"] = run_phase(config, start, data, run, phase="baseline", max_steps=steps)
    announce(f"Phase 2: its layers as modules, {model_config.num_rounds} rounds of assembly")
    return model, others


def _of_phase_1(config: RunConfig) -> RunConfig:
    """The request with phase 1's own warm-up."""
    assert isinstance(config.task, PretrainConfig)
    if config.task.plain_warmup_steps is None:
        return config
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=config.task.plain_warmup_steps)
    return dataclasses.replace(config, optimizer=optimizer)


def _train(
    config: RunConfig,
    run: RunDirectory,
    data: LanguageModelingDataModule,
    model: MoMForCausalLM,
    resume: ResumePoint | None,
) -> Results:
    """The main phase, in the run directory itself."""
    phase = "mom" if model.config.num_stages else "plain"
    return fit_phase(config, model, data, run, phase=phase, max_steps=config.trainer.max_steps, resume=resume)


def _print_table(results: Results, others: dict[str, Results], run: RunDirectory) -> None:
    columns = {"MoM" if results.get("routing/ffn/skip_rate") is not None else "model": results}
    if "baseline" in others:
        columns["plain, trained on"] = others["baseline"]
    caption = None
    if "val/loss" in others.get("plain", {}):
        before = others["plain"]["val/loss"]
        caption = f"Both start from the plain transformer of phase 1, validation loss {before:.4f}."
    table = results_table(columns, f"{results['steps']:.0f} steps", caption)
    print_report(table, run.path, picture=run.path / FIGURES / "module_use.png")
