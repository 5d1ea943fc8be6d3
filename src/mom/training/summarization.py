"""Summaries: the loss they are trained with, how they are generated, ROUGE."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mom.data.examples import pad
from mom.model import MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule

ROUGE = ("rouge1", "rouge2", "rougeL")


class SummarizationModule(LanguageModelingModule):
    """A language model trained on summaries; logs ``val/score``, -``val/loss``, to choose the best by."""

    def on_validation_epoch_end(self) -> None:
        """Log the average over every token of a summary, and the score."""
        super().on_validation_epoch_end()
        self.log("val/score", -self.validation_loss, on_step=False, on_epoch=True, batch_size=1)


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
