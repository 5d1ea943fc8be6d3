"""Measure the perplexity and bits per byte of a language model on text."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader

from mom.config import DataConfig, EvaluateConfig, RunConfig
from mom.config.checks import check_length
from mom.console import print_report
from mom.data.prepare import PreparedCorpus, combined_hash, prepare_corpora
from mom.data.token_files import TokenFile, with_bytes
from mom.data.tokenizer import find_tokenizer, load_model_tokenizer
from mom.data.windows import ScoringWindows, check_separable
from mom.errors import UsageError
from mom.evaluation.measure import evaluate_module
from mom.evaluation.report import results_of_set, results_table
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
    """Measure the language-model loss on the windows of a corpus, or of each corpus of a mixture, and print a table.

    Returns:
        The metrics of :func:`mom.evaluation.measure.evaluate_module`, ``data/tokens`` (the number predicted),
        ``data/bytes_per_token`` if it is known, and ``data/fingerprint``.

    Raises:
        UsageError: the windows do not fit the model, or the tokenizer or the corpus cannot be used.
    """
    _check_windows(task, data, model.config)
    load_model_tokenizer(init, data.tokenizer, model.config)  # checks it before tokenizing a corpus
    given = dataclasses.replace(data, tokenizer=find_tokenizer(init, data.tokenizer))
    corpora = prepare_corpora(given)
    files = {
        name: [with_bytes(file, corpus.tokenizer) for file in corpus.split_files(task.split)]
        for name, corpus in corpora.items()
    }
    windows = {name: _windows(files[name], task, data, corpus) for name, corpus in corpora.items()}
    skipped = sum(dataset.num_skipped for part in windows.values() for dataset in part)
    if skipped:
        log.info("skipping the last %d tokens (no full window); set task.stride to score them", skipped)
    mean_bytes = bytes_per_token([file for part in files.values() for file in part])
    names = list(data.parts())
    module = LanguageModelingModule(
        model_config=model.config.to_dict(),
        optimizer=dataclasses.asdict(config.optimizer),
        model=model,
        bytes_per_token=mean_bytes,
        sets={name: bytes_per_token(files[name]) for name in names},
    )
    loaders = [_loader(part, data) for part in windows.values()]
    results = evaluate_module(config, module, loaders if names else loaders[0], run, phase="evaluate")
    layout = f"windows of {data.sequence_length} tokens, stride {task.stride or data.sequence_length}"
    columns = {init: results} | {name: results_of_set(results, name) for name in names}
    print_report(results_table(columns, f"{data.corpus}, {task.split}: {layout}"), run.path)
    return {
        **results,
        "data/tokens": module.num_predicted,
        **({} if mean_bytes is None else {"data/bytes_per_token": mean_bytes}),
        "data/fingerprint": combined_hash(given, [corpus.fingerprint for corpus in corpora.values()]),
    }


def _windows(
    files: list[TokenFile], task: EvaluateConfig, data: DataConfig, corpus: PreparedCorpus
) -> list[ScoringWindows]:
    separator = corpus.tokenizer.eos_token_id if data.document_mask else None
    return [ScoringWindows(file, data.sequence_length, task.stride, separator) for file in files]


def _loader(windows: list[ScoringWindows], data: DataConfig) -> DataLoader[Any]:
    # Windows of a batch must have equal lengths, but a file shorter than a window has a single, shorter window.
    equal = len({dataset.length for dataset in windows}) == 1
    return DataLoader(
        ConcatDataset(windows), batch_size=data.batch_size if equal else 1, num_workers=data.num_workers
    )


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
