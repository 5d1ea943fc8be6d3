"""Measure the perplexity and bits per byte of a language model on text."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader

from mom.config import DataConfig, EvaluateConfig, RunConfig
from mom.config.checks import check_length
from mom.console import print_report
from mom.data.prepare import prepare
from mom.data.token_files import TokenFile, with_bytes
from mom.data.tokenizer import find_tokenizer, load_model_tokenizer
from mom.data.windows import ScoringWindows, check_separable
from mom.errors import UsageError
from mom.evaluation.measure import evaluate_module
from mom.evaluation.report import results_table
from mom.model import MoMConfig, MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.language_modeling import LanguageModelingModule

log = logging.getLogger(__name__)


def evaluate_text(
    config: RunConfig,
    task: EvaluateConfig,
    data: DataConfig,
    init: str,
    model: MoMForCausalLM,
    run: RunDirectory,
) -> dict[str, Any]:
    """Measure the language-model loss on the windows of a corpus, and print a table.

    Returns:
        The metrics of :func:`mom.evaluation.measure.evaluate_module`, ``data/tokens`` (the number predicted),
        ``data/bytes_per_token`` if it is known, and ``data/fingerprint``.

    Raises:
        UsageError: the windows do not fit the model, or the tokenizer or the corpus cannot be used.
    """
    _check_windows(task, data, model.config)
    load_model_tokenizer(
        init, data.tokenizer, model.config
    )  # checks the tokenizer before tokenizing a corpus
    prepared = prepare(dataclasses.replace(data, tokenizer=find_tokenizer(init, data.tokenizer)))
    files = [with_bytes(file, prepared.tokenizer) for file in prepared.split_files(task.split)]
    separator = prepared.tokenizer.eos_token_id if data.document_mask else None
    windows = [ScoringWindows(file, data.sequence_length, task.stride, separator) for file in files]
    skipped = sum(dataset.num_skipped for dataset in windows)
    if skipped:
        log.info("skipping the last %d tokens (no full window); set task.stride to score them", skipped)
    mean_bytes = bytes_per_token(files)
    module = LanguageModelingModule(
        model_config=model.config.to_dict(),
        optimizer=dataclasses.asdict(config.optimizer),
        model=model,
        bytes_per_token=mean_bytes,
    )
    # Windows of a batch must have equal lengths, but a file shorter than a window has a single, shorter window.
    equal = len({dataset.length for dataset in windows}) == 1
    loader: DataLoader[Any] = DataLoader(
        ConcatDataset(windows), batch_size=data.batch_size if equal else 1, num_workers=data.num_workers
    )
    results = evaluate_module(config, module, loader, run, phase="evaluate")
    layout = f"windows of {data.sequence_length} tokens, stride {task.stride or data.sequence_length}"
    print_report(results_table({init: results}, f"{data.corpus}, {task.split}: {layout}"), run.path)
    return {
        **results,
        "data/tokens": module.num_predicted,
        **({} if mean_bytes is None else {"data/bytes_per_token": mean_bytes}),
        "data/fingerprint": prepared.fingerprint,
    }


def bytes_per_token(files: list[TokenFile]) -> float | None:
    """Return the mean UTF-8 bytes per token of several files, ``None`` if the bytes of one are unknown."""
    if not all(file.num_bytes for file in files):
        return None
    return sum(file.num_bytes for file in files) / sum(file.count for file in files)


def _check_windows(task: EvaluateConfig, data: DataConfig, config: MoMConfig) -> None:
    check_length(data.sequence_length, config.max_positions)
    if data.document_mask:
        check_separable(config)
    if task.stride is not None and task.stride >= data.sequence_length:
        raise UsageError(
            f"task.stride must be below data.sequence_length ({data.sequence_length}) or null, got {task.stride}"
        )
