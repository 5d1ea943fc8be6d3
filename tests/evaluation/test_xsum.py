"""ROUGE against scores by hand and another library; batched summaries equal single ones."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.text import rouge_score

from mom.evaluation.xsum import generate_summaries, lead_sentence, rouge
from tests.helpers.checkpoints import VOCABULARY, small_tokenizer
from tests.helpers.models import small_model

PREDICTIONS = ["the police killed the gunman", "A plan for a hotel was approved.", "nothing here"]
REFERENCES = ["police kill the gunman", "Plans for an indoor hotel have been approved", "all different words"]


def f(hits: int, predicted: int, wanted: int) -> float:
    return 0.0 if hits == 0 else 2 * hits / (predicted + wanted)


def test_rouge_by_hand():
    # With stemming "killed" is "kill"; police kill(ed) the gunman: 4 of 5 and 4 words, in order.
    found = rouge(PREDICTIONS[:1], REFERENCES[:1])
    assert found["rouge1"] == pytest.approx(100 * f(4, 5, 4))
    # police kill, the gunman; "kill the" too: 3 of 4 and 3 pairs.
    assert found["rouge2"] == pytest.approx(100 * f(3, 4, 3))
    assert found["rougeL"] == pytest.approx(100 * f(4, 5, 4))
    assert rouge(PREDICTIONS[2:], REFERENCES[2:]) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_rouge_agrees_with_torchmetrics_and_is_a_mean():
    found = rouge(PREDICTIONS, REFERENCES)
    theirs = rouge_score(PREDICTIONS, REFERENCES, use_stemmer=True, rouge_keys=("rouge1", "rouge2", "rougeL"))

    for name, value in found.items():
        assert value == pytest.approx(100 * float(theirs[f"{name}_fmeasure"]), rel=1e-5)
        single = [rouge([p], [r])[name] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
        assert value == pytest.approx(sum(single) / 3)


def test_the_first_sentence():
    assert lead_sentence("One is 1.5 big. Two.\nThree.") == "One is 1.5 big."
    assert lead_sentence("\n  No end\nNext.") == "No end"


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "num_beams": 3, "length_penalty": 2.0},
        {"max_new_tokens": 6, "min_new_tokens": 6, "no_repeat_ngram_size": 1},
    ],
)
def test_a_batch_is_its_rows(options):
    tokenizer = small_tokenizer()
    model = small_model(vocab_size=VOCABULARY, max_positions=64)
    prompts = [
        tokenizer(text)["input_ids"] for text in ("module", "round token anchor pool skip", "λ router")
    ]
    together = list(generate_summaries(model, tokenizer, prompts, options, batch_size=3))
    alone = [
        next(generate_summaries(model, tokenizer, [prompt], options, batch_size=1)) for prompt in prompts
    ]

    assert together == alone
    assert len(set(together)) > 1
    if options.get("num_beams", 1) == 1 and "min_new_tokens" not in options:
        ids = list(prompts[1])
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        text = tokenizer.decode(ids[len(prompts[1]) :], skip_special_tokens=True)
        assert together[1] == " ".join(text.split())
