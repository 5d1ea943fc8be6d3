"""Generated summaries measured, written and shown."""

from __future__ import annotations

import json
from typing import Any

from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table

from mom.config import RunConfig
from mom.data.xsum import Article, XsumDataModule
from mom.errors import RequestError
from mom.evaluation.report import print_report
from mom.model import MoMForCausalLM
from mom.runs.directory import RunDirectory
from mom.training.summarization import ROUGE, generate_summaries, lead_sentence, rouge

SAMPLES = 3


def measure_summaries(
    config: RunConfig,
    model: MoMForCausalLM,
    data: XsumDataModule,
    run: RunDirectory,
    splits: tuple[str, ...] = ("validation", "test"),
) -> dict[str, Any]:
    """Summarise every document of the splits there are, compare with the references, print a table.

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
