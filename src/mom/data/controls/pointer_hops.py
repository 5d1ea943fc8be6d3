"""Pointer hops: follow a chain of pointers within the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mom.data.controls.control import IGNORED, Control, Examples, register_control
from mom.errors import UsageError

if TYPE_CHECKING:
    from torch import Generator, Tensor

MAX_DRAWS = 1000


@register_control("pointer_hops")
class PointerHops(Control):
    """The k-hop induction head (Sanford et al., arXiv 2402.09268; p-hop of Saunshi et al., arXiv 2502.17416).

    A sequence is a token that names k, then ``context`` random symbols, none of which follows itself. A hop from a
    position goes to the position after the latest earlier occurrence of its symbol; the answer is the symbol k hops
    from the last one. A transformer whose attentions each do one hop, or double the hops done so far, needs a depth
    that grows with k.

    Training has every k from 1 to ``hops`` in a batch, and a label at every position from which k hops exist.
    Validation has other sequences, with a label at the last position only, in a bucket ``hop<k>`` for each k.

    Args:
        symbols: number of symbols.
        context: symbols in a sequence.
        hops: largest k.
        training_examples: number of training sequences.
        validation_examples: number of validation sequences of each k.
    """

    symbols: int = 4
    context: int = 16
    hops: int = 4
    training_examples: int = 50_000
    validation_examples: int = 500
    batch_size: int = 64

    def _check(self) -> None:
        super()._check()
        self._range("symbols", ge=2, le=1000)
        self._range("context", ge=4, le=10_000)
        self._range("hops training_examples validation_examples", ge=1)

    @property
    def vocab_size(self) -> int:
        """The symbols, and a token for each k."""
        return self.symbols + self.hops

    @property
    def sequence_length(self) -> int:
        """The token that names k, the symbols, and the answer."""
        return self.context + 2

    @property
    def chance(self) -> float:
        """One symbol in all."""
        return 1 / self.symbols

    @property
    def headline(self) -> str:
        """The most hops."""
        return f"hop{self.hops}"

    @property
    def buckets(self) -> tuple[str, ...]:
        """A bucket for each k."""
        return tuple(f"hop{hops}" for hops in range(1, self.hops + 1))

    def training(self) -> Examples:
        """Generate sequences with k drawn uniformly, and labels at all positions from which k hops exist."""
        import torch

        random = torch.Generator().manual_seed(2 * self.seed)
        hops = torch.randint(1, self.hops + 1, (self.training_examples,), generator=random)
        ids, targets = self._sequences(hops, random)
        return Examples(ids, targets, torch.zeros_like(hops))

    def validation(self) -> Examples:
        """Generate as many sequences of each k, from the last symbol of which k hops exist."""
        import torch

        random = torch.Generator().manual_seed(2 * self.seed + 1)
        parts = []
        for number in range(1, self.hops + 1):
            hops = torch.full((self.validation_examples,), number)
            ids, targets = self._sequences(hops, random)
            targets[:, :-1] = IGNORED
            parts.append((ids, targets))
        ids, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return Examples(ids, labels, torch.arange(self.hops).repeat_interleave(self.validation_examples))

    def _sequences(self, hops: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
        """Draw a sequence for each k in ``hops`` (M,), redrawing those that lack an answer at the last position.

        Returns:
            Tokens and labels, int64 (M, T); a label is the answer at the position before it.
        """
        import torch

        ids = torch.empty(len(hops), self.sequence_length, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        ids[:, 0] = self.symbols + hops - 1
        missing = torch.arange(len(hops))
        for _ in range(MAX_DRAWS):
            symbols = self._draw(len(missing), random)
            answers = follow(symbols, hops[missing])
            ids[missing, 1:-1] = symbols
            ids[missing, -1] = answers[:, -1]
            labels[missing, 2:] = answers
            missing = missing[answers[:, -1] == IGNORED]
            if not len(missing):
                return ids, labels
        raise UsageError(
            f"data.hops must be smaller or data.context larger: few sequences of {self.context} symbols allow "
            f"{self.hops} hops, got {self.hops}"
        )

    def _draw(self, number: int, random: Generator) -> Tensor:
        """Return sequences of symbols, int64 (``number``, context), in which no symbol follows itself."""
        import torch

        first = torch.randint(self.symbols, (number, 1), generator=random)
        steps = torch.randint(1, self.symbols, (number, self.context - 1), generator=random)
        return (torch.cat([first, steps], dim=1).cumsum(1)) % self.symbols


def follow(symbols: Tensor, hops: Tensor) -> Tensor:
    """Return the answer at every position, int64 (M, L), or ``IGNORED`` where there are not enough hops.

    Args:
        symbols: int64 (M, L).
        hops: k of each sequence, int64 (M,).
    """
    import torch

    number, length = symbols.shape
    # Position 0 is a sink: hops from positions without an earlier occurrence lead there and stay.
    step = torch.zeros(number, length + 1, dtype=torch.int64)
    latest = torch.zeros(number, int(symbols.max()) + 1, dtype=torch.int64)
    rows = torch.arange(number)
    for position in range(length):
        symbol = symbols[:, position]
        step[:, position + 1] = latest[rows, symbol]
        # The next position, counted from 1, follows this occurrence.
        latest[rows, symbol] = position + 2
    reached = torch.arange(1, length + 1).repeat(number, 1)
    for hop in range(int(hops.max())):
        reached = torch.where(hops[:, None] > hop, step.gather(1, reached), reached)
    answers = symbols.gather(1, (reached - 1).clamp(min=0))
    return answers.where(reached > 0, IGNORED)
