"""Table lookup: chains of functions given by tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mom.data.controls.control import Control, Examples, answers_only, register_control
from mom.data.controls.sampling import draw_rows, held_out, scatter

if TYPE_CHECKING:
    from torch import Generator, Tensor


@register_control("table_lookup")
class TableLookup(Control):
    """Compositional table lookup (Csordás et al., arXiv 2110.07732; Liška et al., arXiv 1802.06467).

    A sequence is a symbol x, up to ``longest_chain`` functions, and the answer: the symbol reached from x by the
    functions in turn. Each function is a random bijection on the symbols, so no part of a chain can be skipped.

    Training has chains of 1 to ``trained_chain`` functions, without a random ``held_out_fraction`` of those of two or
    more. Buckets: ``length<k>`` for chains of k functions, held out up to ``trained_chain`` and longer than any trained
    one from then on. Functions stand at random positions among tokens that do nothing, so longer chains use no position
    that was not trained.

    Args:
        symbols: number of symbols.
        functions: number of functions.
        trained_chain: functions in the longest chain of training.
        longest_chain: functions in the longest chain of validation.
        order: ``operand_first`` is ``x f1 f2``, ``operand_last`` is ``f2 f1 x``.
        held_out_fraction: fraction of the chains of trained lengths held out.
        training_examples: number of training sequences.
        validation_examples: number of validation sequences of each length.
    """

    symbols: int = 8
    functions: int = 8
    trained_chain: int = 3
    longest_chain: int = 5
    order: Literal["operand_first", "operand_last"] = "operand_first"
    held_out_fraction: float = 0.2
    training_examples: int = 100_000
    validation_examples: int = 500

    def _check(self) -> None:
        super()._check()
        self._range("symbols functions", ge=2, le=1000)
        self._range("trained_chain", ge=1)
        self._range("longest_chain", ge=self.trained_chain, le=100)
        self._range("held_out_fraction", gt=0, lt=1)
        self._range("training_examples validation_examples", ge=1)

    @property
    def vocab_size(self) -> int:
        """The symbols, the functions, and the token that does nothing."""
        return self.symbols + self.functions + 1

    @property
    def sequence_length(self) -> int:
        """A symbol, the functions, and the answer."""
        return self.longest_chain + 2

    @property
    def chance(self) -> float:
        """One symbol in all."""
        return 1 / self.symbols

    @property
    def headline(self) -> str:
        """The shortest chains that are longer than those of training."""
        return f"length{min(self.trained_chain + 1, self.longest_chain)}"

    @property
    def buckets(self) -> tuple[str, ...]:
        """A bucket for each length."""
        return tuple(f"length{length}" for length in range(1, self.longest_chain + 1))

    def training(self) -> Examples:
        """Generate chains whose lengths are drawn uniformly."""
        import torch

        random = torch.Generator().manual_seed(3 * self.seed)
        lengths = torch.arange(self.training_examples) % self.trained_chain + 1
        chains = torch.zeros(len(lengths), self.longest_chain + 1, dtype=torch.int64)
        for length in range(1, self.trained_chain + 1):
            chosen = lengths == length
            chains[chosen, : length + 1] = self._draw(int(chosen.sum()), length, False, random)
        ids = self._sequences(chains, lengths, random)
        return Examples(ids, answers_only(ids), torch.zeros_like(lengths))

    def validation(self) -> Examples:
        """Generate as many chains of each length, held out if training has chains of that length."""
        import torch

        random = torch.Generator().manual_seed(3 * self.seed + 1)
        lengths = torch.arange(1, self.longest_chain + 1).repeat_interleave(self.validation_examples)
        chains = torch.zeros(len(lengths), self.longest_chain + 1, dtype=torch.int64)
        for length in range(1, self.longest_chain + 1):
            chains[lengths == length, : length + 1] = self._draw(
                self.validation_examples, length, 1 < length <= self.trained_chain, random
            )
        ids = self._sequences(chains, lengths, random)
        return Examples(ids, answers_only(ids), lengths - 1)

    @property
    def tables(self) -> Tensor:
        """The symbol that each function gives for each symbol, int64 (functions, symbols)."""
        import torch

        random = torch.Generator().manual_seed(3 * self.seed + 2)
        return torch.stack([torch.randperm(self.symbols, generator=random) for _ in range(self.functions)])

    def _draw(self, number: int, length: int, held: bool, random: Generator) -> Tensor:
        """Draw chains of one length, held out or not, int64 (``number``, 1 + length): the symbol and the functions."""
        import torch

        def draw(rows: int) -> Tensor:
            symbol = torch.randint(self.symbols, (rows, 1), generator=random)
            return torch.cat([symbol, torch.randint(self.functions, (rows, length), generator=random)], dim=1)

        def keep(rows: Tensor) -> Tensor:
            if not 1 < length <= self.trained_chain:
                return torch.ones(len(rows), dtype=torch.bool)
            chosen = torch.Generator().manual_seed(self.seed)
            return held_out(rows, self.held_out_fraction, chosen) == held

        return draw_rows(
            number,
            draw,
            keep,
            f"data.held_out_fraction must be {'larger' if held else 'smaller'}: no chain of {length} functions is left "
            f"for {'validation' if held else 'training'}, got {self.held_out_fraction}",
        )

    def _sequences(self, chains: Tensor, lengths: Tensor, random: Generator) -> Tensor:
        """Write chains, the symbol and the functions (M, 1 + ``longest_chain``), as tokens (M, T)."""
        import torch

        symbol, functions = chains[:, :1], chains[:, 1:]
        answer, tables = symbol[:, 0], self.tables
        for step in range(self.longest_chain):
            answer = torch.where(step < lengths, tables[functions[:, step], answer], answer)
        nothing = self.symbols + self.functions
        slots = scatter(self.symbols + functions, lengths, self.longest_chain, nothing, random)
        question = [symbol, slots] if self.order == "operand_first" else [slots.flip(1), symbol]
        return torch.cat([*question, answer[:, None]], dim=1)
