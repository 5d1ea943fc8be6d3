"""XSum: generate summaries, score them against the references with ROUGE, and write both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from lightning.fabric import Fabric
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mom.config import RunConfig
from mom.console import announce, build_table, print_report
from mom.data.examples import pad
from mom.data.xsum import Article, XsumDataModule
from mom.evaluation.measure import evaluate_module
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.runs.progress import track
from mom.training.language_modeling import SummarizationModule

ROUGE = ("rouge1", "rouge2", "rougeL")
NUM_PRINTED = 3
"""Summaries of each split that are printed."""


def measure_summaries(
    config: RunConfig,
    model: MoMForCausalLM,
    data: XsumDataModule,
    run: RunDirectory,
    splits: tuple[str, ...] = ("validation", "test"),
) -> dict[str, Any]:
    """Summarize all documents of the available splits, score the summaries, and print a table.

    Writes ``summaries/<split>.jsonl``, one line ``{"id", "prediction", "reference"}`` per document, and prints the
    first few.

    Returns:
        ``val/rouge1``, ``val/rouge2``, ``val/rougeL``, and ``val/summaries`` (their number), the scores of the
        documents' first sentences under ``lead/val/``, and for a test split ``test/`` instead of ``val/``.
    """
    model.eval().to(Fabric(accelerator=config.trainer.accelerator, devices=1).device)
    results: dict[str, Any] = {}
    rows = []
    for split in splits:
        if split not in data.articles:
            continue
        articles = data.articles[split][: data.config.limit_summaries]
        prompts = data.prompts(split)[: len(articles)]
        options = data.config.generation
        summaries = list(generate_summaries(model, data.tokenizer, prompts, options, data.config.batch_size))
        _write(articles, summaries, split, run)
        references = [article.summary for article in articles]
        leads = [lead_sentence(article.document) for article in articles]
        prefix = "val" if split == "validation" else split
        results[f"{prefix}/summaries"] = len(summaries)
        for label, key, texts in (
            ("generated", prefix, summaries),
            ("first sentence", f"lead/{prefix}", leads),
        ):
            scores = rouge(texts, references)
            results |= {f"{key}/{name}": value for name, value in scores.items()}
            rows.append([f"{split}, {label}", *(f"{scores[name]:.2f}" for name in ROUGE)])
    print_report(build_table(["", *ROUGE], rows, title="ROUGE F (× 100)"), run.path)
    return results


def _write(articles: list[Article], summaries: list[str], split: str, run: RunDirectory) -> None:
    rows = [
        {"id": article.id, "prediction": text, "reference": article.summary}
        for article, text in zip(articles, summaries, strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    run.write_text(f"summaries/{split}.jsonl", lines)
    for row in rows[:NUM_PRINTED]:
        announce(f"{split} {row['id']}\n  prediction: {row['prediction']}\n  reference:  {row['reference']}")


@torch.inference_mode()
def generate_summaries(
    model: MoMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    options: Mapping[str, Any],
    batch_size: int,
) -> Iterator[str]:
    """Yield the continuation of each prompt, in order, as text on one line.

    Prompts of similar length are padded on the left and generated in one batch, with a cache.

    Args:
        model: the model, in evaluation mode and on its device.
        tokenizer: its tokenizer.
        prompts: token ids.
        options: generation options by their names in transformers.
        batch_size: prompts per batch.
    """
    end = tokenizer.eos_token_id
    settings = GenerationConfig(eos_token_id=end, pad_token_id=end, do_sample=False, **options)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts: dict[int, str] = {}
    starts = range(0, len(order), batch_size)
    for start in track(starts, "generating summaries", len(starts)):
        rows = order[start : start + batch_size]
        batch = pad([list(prompts[row]) for row in rows], end, left=True)
        sequences = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            generation_config=settings,
        )
        generated = sequences[:, batch["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(generated, skip_special_tokens=True)
        texts |= {row: " ".join(text.split()) for row, text in zip(rows, decoded, strict=True)}
    yield from (texts[index] for index in range(len(prompts)))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the mean F-measures of ROUGE-1, -2 and -L with stemming, times 100, from the ``rouge_score`` package."""
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        scorer.score(reference, prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: 100 * fmean(score[name].fmeasure for score in scores) for name in ROUGE}


def lead_sentence(document: str) -> str:
    """Return the first sentence of a document: up to a period, question mark, or exclamation mark before a space."""
    first = document.strip().split("\n", 1)[0]
    return re.split(r"(?<=[.!?])\s", first, maxsplit=1)[0]


def measure_xsum(
    config: RunConfig,
    module: SummarizationModule,
    data: XsumDataModule,
    directory: RunDirectory,
    *,
    logged: bool,
) -> dict[str, Any]:
    """Validate a language model on the reference summaries (:func:`evaluate_module`), then score its own summaries.

    Returns:
        ``val/loss``, ``val/score``, and the results of :func:`measure_summaries`.
    """
    assert isinstance(module.model, MoMForCausalLM)
    measured = evaluate_module(config, module, data.val_dataloader(), directory, phase="xsum", logged=logged)
    return {**measured, **measure_summaries(config, module.model, data, directory)}
