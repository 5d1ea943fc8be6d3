"""Generated summaries measured, written and shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mom.config import RunConfig
from mom.console import print_report
from mom.data.examples import pad
from mom.data.xsum import Article, XsumDataModule
from mom.errors import RequestError
from mom.evaluation.measure import evaluate_module
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.language_modeling import SummarizationModule

SAMPLES = 3


def measure_summaries(
    config: RunConfig,
    model: MoMForCausalLM,
    data: XsumDataModule,
    run: RunDirectory,
    splits: tuple[str, ...] = ("validation", "test"),
) -> dict[str, Any]:
    """Summarize every document of the splits there are, compare with the references, print a table.

    Writes ``summaries/<split>.jsonl``, a line ``{"id", "prediction", "reference"}`` for each document, and shows
    the first few.

    Returns:
        ``val/rouge1``, ``val/rouge2``, ``val/rougeL`` and ``val/summaries`` (how many), the same of the first
        sentences under ``lead/val/``, and for a test split ``test/`` in the place of ``val/``.

    Raises:
        RequestError: ``run_dir``, if the summaries cannot be written.
    """
    model.eval().to(Fabric(accelerator=config.trainer.accelerator, devices=1).device)
    results: dict[str, Any] = {}
    table = Table(title="ROUGE F (× 100)", title_justify="left")
    for heading in ("", *ROUGE):
        table.add_column(heading, justify="right" if heading else "left")
    for split in splits:
        if split not in data.articles:
            continue
        articles = data.articles[split][: data.config.limit_summaries]
        prompts = data.prompts(split)[: len(articles)]
        options = data.config.generation
        made = list(generate_summaries(model, data.tokenizer, prompts, options, data.config.batch_size))
        _write(articles, made, split, run)
        references = [article.summary for article in articles]
        leads = [lead_sentence(article.document) for article in articles]
        prefix = "val" if split == "validation" else split
        results[f"{prefix}/summaries"] = len(made)
        for label, key, texts in (("generated", prefix, made), ("first sentence", f"lead/{prefix}", leads)):
            scores = rouge(texts, references)
            results |= {f"{key}/{name}": value for name, value in scores.items()}
            table.add_row(f"{split}, {label}", *(f"{scores[name]:.2f}" for name in ROUGE))
    print_report(table, run.path)
    return results


def _write(articles: list[Article], made: list[str], split: str, run: RunDirectory) -> None:
    if not run.writes:
        return
    path = run.path / "summaries" / f"{split}.jsonl"
    rows = [
        {"id": article.id, "prediction": text, "reference": article.summary}
        for article, text in zip(articles, made, strict=True)
    ]
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as reason:
        raise RequestError("run_dir", path.parent, f"a folder that can be written: {reason}") from reason
    for row in rows[:SAMPLES]:
        _show(f"{split} {row['id']}\n  prediction: {row['prediction']}\n  reference:  {row['reference']}")


@rank_zero_only
def _show(text: str) -> None:
    print(text, flush=True)


ROUGE = ("rouge1", "rouge2", "rougeL")


@torch.inference_mode()
def generate_summaries(
    model: MoMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    options: Mapping[str, Any],
    batch_size: int,
) -> Iterator[str]:
    """Yield the continuation of each prompt, in order, as text on one line.

    Batches of prompts of similar length are padded on the left and generated together with a cache.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: its tokenizer.
        prompts: token ids.
        options: of generation, by transformers' names.
        batch_size: prompts at once.
    """
    end = tokenizer.eos_token_id
    settings = GenerationConfig(eos_token_id=end, pad_token_id=end, do_sample=False, **options)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = pad([list(prompts[row]) for row in rows], end, left=True)
        whole = model.generate(  # type: ignore[misc]  # transformers types self by a protocol of its own
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            generation_config=settings,
        )
        added = tokenizer.batch_decode(whole[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found |= {row: " ".join(text.split()) for row, text in zip(rows, added, strict=True)}
    yield from (found[index] for index in range(len(prompts)))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, -2 and -L, with stemming, times 100, by the ``rouge_score`` package."""
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(truth, guess) for guess, truth in zip(predictions, references, strict=True)]
    return {name: 100 * fmean(score[name].fmeasure for score in scores) for name in ROUGE}


def lead_sentence(document: str) -> str:
    """The first sentence of a document: up to a full stop, question or exclamation mark before a space."""
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
    """Validate a language model on summaries, then generate them and compare.

    Args:
        config: the request.
        module: the language model.
        data: the articles.
        directory: where to write.
        logged: see :func:`mom.evaluation.measure.evaluate_module`.

    Returns:
        ``val/loss``, ``val/score`` and what :func:`mom.evaluation.xsum.measure_summaries` returns.
    """
    assert isinstance(module.model, MoMForCausalLM)
    measured = evaluate_module(config, module, data.val_dataloader(), directory, phase="xsum", logged=logged)
    return {**measured, **measure_summaries(config, module.model, data, directory)}
