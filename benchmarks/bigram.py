"""Compute the validation loss of a bigram model, which a trained model should beat.

    python benchmarks/bigram.py data=text data.path=… data.tokenizer=…

This takes the data options of ``run.py`` and reads the same token files and validation windows. The model is
``P(w | v) = (count(v, w) + a · P(w)) / (count(v) + a)``, with P(w) from add-one counts. The best of a few values of
``a`` is chosen on the validation tokens, which favors the bigram model.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from mom.config import bind
from mom.config.composition import composed
from mom.data.language_modeling import LanguageModelingDataModule
from mom.data.token_files import bits_per_byte


def bigram_loss(train: np.ndarray, windows: list[np.ndarray], vocab_size: int) -> tuple[float, float]:
    """Return the mean loss over all predicted tokens of the windows, in nats, and the best ``a``."""
    first, second = train[:-1].astype(np.int64), train[1:].astype(np.int64)
    pairs, pair_counts = np.unique(first * vocab_size + second, return_counts=True)
    before = np.bincount(first, minlength=vocab_size)
    unigram = (np.bincount(train, minlength=vocab_size) + 1.0) / (len(train) + vocab_size)
    v = np.concatenate([window[:-1] for window in windows]).astype(np.int64)
    w = np.concatenate([window[1:] for window in windows]).astype(np.int64)
    index = np.minimum(np.searchsorted(pairs, v * vocab_size + w), len(pairs) - 1)
    count = np.where(pairs[index] == v * vocab_size + w, pair_counts[index], 0)
    losses = {
        a: -np.log((count + a * unigram[w]) / (before[v] + a)).mean() for a in (10, 30, 100, 300, 1000, 3000)
    }
    best = min(losses, key=losses.__getitem__)
    return float(losses[best]), float(best)


def main() -> None:
    """Prepare the data and print the loss."""
    config = bind(composed(Path(__file__).parents[1] / "conf", sys.argv[1:]))
    data = LanguageModelingDataModule(config.data, config.seed)
    data.setup()
    windows = [
        data.validation_windows[index]["input_ids"].numpy() for index in range(len(data.validation_windows))
    ]
    train = np.asarray(data.prepared.train.tokens)
    loss, smoothing = bigram_loss(train, windows, data.vocab_size)
    bits = bits_per_byte(loss, data.validation_bytes_per_token)
    print(
        f"bigram: {loss:.4f} nats/token, perplexity {math.exp(loss):.2f}, {bits:.4f} bits per byte (a = {smoothing:g})"
    )


if __name__ == "__main__":
    main()
