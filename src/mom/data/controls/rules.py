"""Rules: functions that the context selects, never the token at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mom.data.controls.control import IGNORED, Control, Examples, register_control
from mom.data.controls.sampling import draw_rows, held_out

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register_control("rules")
class Rules(Control):
    """Functions applied in turn, each named by the context (after Mittal, Bengio, and Lajoie, arXiv 2206.02713).

    A sequence is a marker for each of ``steps`` steps, a symbol x, a token ``next`` for each step but the first, and an
    end token. Step s applies a rule to the value of the step before, at first to x; the label is the value after x and
    after every ``next``. A rule is a random bijection on the symbols, and each marker stands for one rule. So the token
    at which a rule applies, x or ``next``, tells nothing about the rule.

    Training has labels for all steps, and no sequence of x and rules that is held out. Validation has a label for the
    last step only. Buckets: ``seen`` and ``held_out`` sequences of x and rules.

    With a feed-forward module for each rule the right module is known: ``choices["ffn"]`` is the rule at x and at every
    ``next``, and -1 at the other tokens. ``router=oracle`` takes it.

    Args:
        rules: number of rules.
        steps: rules applied in turn.
        symbols: number of symbols.
        markers: number of markers, spread evenly over the rules.
        held_out_fraction: fraction of the sequences of x and rules held out.
        training_examples: number of training sequences.
        validation_examples: number of validation sequences of each bucket.
    """

    rules: int = 4
    steps: int = 3
    symbols: int = 32
    markers: int = 8
    held_out_fraction: float = 0.5
    training_examples: int = 100_000
    validation_examples: int = 1000

    def _check(self) -> None:
        super()._check()
        self._range("rules", ge=2, le=1000)
        self._range("steps", ge=1, le=100)
        self._range("symbols", ge=2, le=1000)
        self._range("markers", ge=self.rules, le=10_000)
        self._range("held_out_fraction", gt=0, lt=1)
        self._range("training_examples validation_examples", ge=1)

    @property
    def vocab_size(self) -> int:
        """The symbols, the markers, ``next``, and the end token."""
        return self.symbols + self.markers + 2

    @property
    def sequence_length(self) -> int:
        """The markers, x, ``next`` for each step but the first, and the end token."""
        return 2 * self.steps + 1

    @property
    def chance(self) -> float:
        """One symbol in all."""
        return 1 / self.symbols

    @property
    def headline(self) -> str:
        """Held-out sequences of x and rules."""
        return "held_out"

    @property
    def buckets(self) -> tuple[str, ...]:
        """Sequences of x and rules that training has, and those that it lacks."""
        return "seen", self.headline

    def training(self) -> Examples:
        """Generate sequences that are not held out, with a label for every step."""
        import torch

        random = torch.Generator().manual_seed(3 * self.seed)
        return self._examples(self._draw(self.training_examples, False, random), random)

    def validation(self) -> Examples:
        """Generate as many seen as held-out sequences, with a label for the last step."""
        import torch

        random = torch.Generator().manual_seed(3 * self.seed + 1)
        chains = [self._draw(self.validation_examples, held, random) for held in (False, True)]
        examples = self._examples(torch.cat(chains), random)
        examples.labels[:, :-1] = IGNORED
        return examples._replace(bucket=torch.arange(2).repeat_interleave(self.validation_examples))

    @property
    def tables(self) -> Tensor:
        """The symbol that each rule gives for each symbol, int64 (rules, symbols)."""
        import torch

        random = torch.Generator().manual_seed(3 * self.seed + 2)
        return torch.stack([torch.randperm(self.symbols, generator=random) for _ in range(self.rules)])

    def _draw(self, number: int, held: bool, random: Generator) -> Tensor:
        """Draw x and the rules of sequences that are held out or not, int64 (``number``, 1 + steps)."""
        import torch

        def draw(rows: int) -> Tensor:
            symbol = torch.randint(self.symbols, (rows, 1), generator=random)
            return torch.cat([symbol, torch.randint(self.rules, (rows, self.steps), generator=random)], dim=1)

        def keep(rows: Tensor) -> Tensor:
            return held_out(rows, self.held_out_fraction, torch.Generator().manual_seed(self.seed)) == held

        return draw_rows(
            number,
            draw,
            keep,
            f"data.held_out_fraction must be {'larger' if held else 'smaller'}: nothing is left for "
            f"{'validation' if held else 'training'}, got {self.held_out_fraction}",
        )

    def _examples(self, chains: Tensor, random: Generator) -> Examples:
        """Write x and rules, int64 (M, 1 + steps), as tokens with a label for every step."""
        import torch

        value, rules = chains[:, 0], chains[:, 1:]
        values, tables = [], self.tables
        for rule in rules.T:
            value = tables[rule, value]
            values.append(value)
        # Markers i, i + rules, i + 2 * rules, … stand for rule i.
        copies = (self.markers - 1 - rules) // self.rules + 1
        copy = (torch.rand(rules.shape, generator=random) * copies).long()
        markers = self.symbols + rules + self.rules * copy  # (M, steps)
        special = torch.tensor([self.vocab_size - 2] * (self.steps - 1) + [self.vocab_size - 1])
        ids = torch.cat([markers, chains[:, :1], special.expand(len(chains), -1)], dim=1)  # (M, T)
        labels = torch.full_like(ids, IGNORED)
        labels[:, self.steps + 1 :] = torch.stack(values, dim=1)
        choices = torch.full_like(ids, -1)
        choices[:, self.steps : 2 * self.steps] = rules
        return Examples(ids, labels, chains.new_zeros(len(chains)), {"ffn": choices})
