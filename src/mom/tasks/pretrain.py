"""Task ``pretrain``: train a plain transformer or a Mixture-of-Modules, in the paper's two phases or in one."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from lightning.pytorch import seed_everything

from mom.callbacks.figures import FOLDER as FIGURES
from mom.config import DataConfig, PretrainConfig, RunConfig
from mom.console import announce, print_report
from mom.data.controls import Control
from mom.data.controls.batches import ControlDataModule
from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.tokenizer import check_vocabulary, find_tokenizer, load_tokenizer
from mom.data.windows import check_separable
from mom.errors import UsageError
from mom.evaluation.report import results_table
from mom.interop import UpcyclingPlan, load_model, plain_config
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import CHECKPOINTS, RunDirectory
from mom.training.checkpoint import LAST, check_architecture
from mom.training.fit import fit_phase
from mom.training.phases import checkpoint_to_resume, finished_results, initialize_from, run_phase
from mom.training.sharding import initialized_once, is_sharded

Results = dict[str, float]
Data = LanguageModelingDataModule | ControlDataModule


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Train, validate, and print the results.

    The main phase resumes from ``ckpt``, or with ``resume=auto`` from ``last.ckpt`` in the run directory if it exists;
    ``resume=auto`` also resumes an interrupted earlier phase. Otherwise a model with stages starts from a plain
    transformer: the one in ``init``, or one that is first trained for ``task.plain_steps`` steps (phase 1, in
    ``plain/``). With ``task.baseline``, the plain transformer also continues training for as many steps as the MoM (in
    ``baseline/``), with the same data order and schedule, for comparison.

    Returns:
        The main phase's results by metric name, those of the other phases with the prefix ``plain/`` or ``baseline/``,
        ``data/fingerprint``, and the token counts.

    Raises:
        UsageError: a checkpoint, weights, or data cannot be used; raised before training.
    """
    assert isinstance(config.task, PretrainConfig)
    resume = checkpoint_to_resume(config, run)
    if resume is not None:
        # Check this before preparing the data, which may be what determines the vocabulary size.
        size = config.model.get("vocab_size") or resume.model_config["vocab_size"]
        check_architecture(resume, config.model_config(size).to_dict())
    initialized = partial(initialized_once, config.trainer.strategy)
    with initialized():
        start = None if config.init is None else load_model(config.init, as_measured=False)

    data = _data_module(_with_tokenizer(config))
    data.setup()
    model_config = config.model_config(data.vocab_size)
    if data.tokenizer is not None:
        model_config.bos_token_id = model_config.eos_token_id = data.tokenizer.eos_token_id

    _check_choices(model_config, data)

    others: dict[str, Results] = {}
    seed_everything(config.seed, workers=True, verbose=False)
    if resume is not None:
        check_architecture(resume, model_config.to_dict())
        with initialized():
            model = MoMForCausalLM(model_config)
        finished = {phase: finished_results(run, phase) for phase in ("plain", "baseline")}
        others = {phase: results for phase, results in finished.items() if results is not None}
    elif start is None and not (model_config.num_stages and config.task.plain_steps):
        with initialized():
            model = MoMForCausalLM(model_config)
    elif start is not None and (start.config.num_stages or not model_config.num_stages):
        with initialized():
            model = initialize_from(start, model_config)
    else:
        model, others = _from_plain(config, run, data, model_config, start)
    phase, steps = "mom" if model_config.num_stages else "plain", config.trainer.max_steps
    results = fit_phase(config, model, data, run, phase=phase, max_steps=steps, resume=resume)
    _print_table(results, others, run)
    return {
        **results,
        **{f"{other}/{name}": value for other, found in others.items() for name, value in found.items()},
        "data/fingerprint": data.fingerprint,
        "data/train_tokens": data.num_train_tokens,
        "data/validation_tokens": data.num_validation_tokens,
    }


def _with_tokenizer(config: RunConfig) -> RunConfig:
    """Return the request with the tokenizer of ``init``, whose token IDs are the only ones that the weights know.

    Raises:
        UsageError: no tokenizer is found with ``init``, or ``data.tokenizer`` has other tokens.
    """
    if config.init is None or not isinstance(config.data, DataConfig):
        return config
    name = find_tokenizer(config.init, config.data.tokenizer)
    if config.data.tokenizer is not None:
        check_vocabulary(load_tokenizer(name), name, config.init)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=name))


def _data_module(config: RunConfig) -> Data:
    if isinstance(config.data, Control):
        return ControlDataModule(config.data, config.seed)
    assert isinstance(config.data, DataConfig)
    return LanguageModelingDataModule(config.data, config.seed)


def _check_choices(model_config: MoMConfig, data: Data) -> None:
    """Reject a router that needs choices if the data has none, and pools that cannot be kept inside a document."""
    if isinstance(data, LanguageModelingDataModule) and data.config.document_mask:
        check_separable(model_config)
    if not model_config.num_stages or not model_config.router_kind.needs_choices:
        return
    if not isinstance(data, ControlDataModule) or data.training.choices is None:
        option, value = data.source
        raise UsageError(
            f"router={model_config.router} requires data with known choices, such as data=control/rules, got "
            f"{option}={value}"
        )


def _from_plain(
    config: RunConfig,
    run: RunDirectory,
    data: Data,
    model_config: MoMConfig,
    start: MoMForCausalLM | None,
) -> tuple[MoMForCausalLM, dict[str, Results]]:
    """Run phase 1 unless ``start`` is given, upcycle, and train the baseline.

    Returns:
        The MoM to train, and the results of phase 1 and the baseline.
    """
    assert isinstance(config.task, PretrainConfig)
    initialized = partial(initialized_once, config.trainer.strategy)
    others: dict[str, Results] = {}
    if start is None:
        with initialized():
            start = MoMForCausalLM(plain_config(model_config))
        announce(f"Phase 1: training a plain transformer of {start.config.graph_depth} blocks")
        for where, layers in UpcyclingPlan.consecutive(model_config).describe():
            announce(f"  {layers} → {where}")
        others["plain"] = run_phase(
            _phase_1_config(config), start, data, run, phase="plain", max_steps=config.task.plain_steps
        )
        if is_sharded(start):  # this process has only a shard
            with initialized():
                start = load_model(run.path / "plain" / CHECKPOINTS / LAST)
    # Seed again, so that phase 2 is the same whether phase 1 runs here or init provides its result.
    seed_everything(config.seed, workers=True, verbose=False)
    with initialized():
        model = initialize_from(start, model_config)  # a copy, so the baseline does not change it
    if config.task.baseline:
        announce("Baseline: continuing to train the plain transformer")
        steps = config.trainer.max_steps
        others["baseline"] = run_phase(config, start, data, run, phase="baseline", max_steps=steps)
    announce(f"Phase 2: training with its layers as modules, {model_config.num_rounds} rounds of assembly")
    return model, others


def _phase_1_config(config: RunConfig) -> RunConfig:
    """Return the request with ``task.plain_warmup_steps`` as the optimizer's warmup."""
    assert isinstance(config.task, PretrainConfig)
    if config.task.plain_warmup_steps is None:
        return config
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=config.task.plain_warmup_steps)
    return dataclasses.replace(config, optimizer=optimizer)


def _print_table(results: Results, others: dict[str, Results], run: RunDirectory) -> None:
    is_mom = any(name.startswith("routing/") for name in results)
    columns = {"MoM" if is_mom else "model": results}
    if "baseline" in others:
        columns["plain baseline"] = others["baseline"]
    caption = None
    if "val/loss" in others.get("plain", {}):
        start = others["plain"]["val/loss"]
        caption = f"Starting point: the plain transformer of phase 1, validation loss {start:.4f}."
    steps = f"{results['steps']:,.0f} step{'s' * (results['steps'] != 1)}"
    table = results_table(columns, steps, caption)
    print_report(table, run.path, picture=run.path / FIGURES / "module_use.png")
