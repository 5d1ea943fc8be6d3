"""Arithmetic: nested operations modulo a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mom.data.controls.control import Control, Examples, answers_only, register_control
from mom.data.controls.sampling import draw_rows, held_out, scatter

if TYPE_CHECKING:
    from torch import Generator, Tensor

OPERATIONS = ("+", "-", "*")


@register_control("arithmetic")
class Arithmetic(Control):
    """Nested operations modulo a number, in prefix notation.

    An expression of depth d has d operations; each but the innermost has a number on one side, drawn at random, and the
    rest of the expression on the other: ``+ 3 * - 1 4 2`` is 3 + ((1 - 4) * 2). An equals sign and the value follow.

    Training has depths 1 to ``trained_depth``, without a random ``held_out_fraction`` of the expressions of two or
    more operations. Buckets: ``depth<d>`` for each depth, held out up to ``trained_depth`` and deeper than any trained
    one from then on. Tokens stand at random positions among blanks, so deeper expressions use no position that was not
    trained.

    Args:
        modulus: numbers are 0 to ``modulus`` - 1.
        trained_depth: operations in the deepest expressions of training.
        deepest: operations in the deepest expressions of validation.
        held_out_fraction: fraction of the expressions of trained depths held out.
        training_examples: number of training sequences.
        validation_examples: number of validation sequences of each depth.
    """

    modulus: int = 5
    trained_depth: int = 2
    deepest: int = 3
    held_out_fraction: float = 0.2
    training_examples: int = 100_000
    validation_examples: int = 500

    def _check(self) -> None:
        super()._check()
        self._range("modulus", ge=2, le=1000)
        self._range("trained_depth", ge=1)
        self._range("deepest", ge=self.trained_depth, le=50)
        self._range("held_out_fraction", gt=0, lt=1)
        self._range("training_examples validation_examples", ge=1)

    @property
    def vocab_size(self) -> int:
        """The numbers, the operations, the equals sign, and the blank."""
        return self.modulus + len(OPERATIONS) + 2

    @property
    def sequence_length(self) -> int:
        """The deepest expression, the equals sign, and the answer."""
        return 2 * self.deepest + 3

    @property
    def chance(self) -> float:
        """One number in all."""
        return 1 / self.modulus

    @property
    def headline(self) -> str:
        """The shallowest expressions that are deeper than those of training."""
        return f"depth{min(self.trained_depth + 1, self.deepest)}"

    @property
    def buckets(self) -> tuple[str, ...]:
        """A bucket for each depth."""
        return tuple(f"depth{depth}" for depth in range(1, self.deepest + 1))

    def training(self) -> Examples:
        """Generate as many expressions of each trained depth."""
        import torch

        depths = torch.arange(self.training_examples) % self.trained_depth + 1
        ids = self._sequences(depths, False, torch.Generator().manual_seed(2 * self.seed))
        return Examples(ids, answers_only(ids), torch.zeros_like(depths))

    def validation(self) -> Examples:
        """Generate as many expressions of each depth, held out if training has expressions of that depth."""
        import torch

        depths = torch.arange(1, self.deepest + 1).repeat_interleave(self.validation_examples)
        ids = self._sequences(depths, True, torch.Generator().manual_seed(2 * self.seed + 1))
        return Examples(ids, answers_only(ids), depths - 1)

    def _sequences(self, depths: Tensor, held: bool, random: Generator) -> Tensor:
        """Return an expression and its value for each depth (M,) as tokens, int64 (M, T)."""
        import torch

        longest = 2 * self.deepest + 1
        expressions = torch.zeros(len(depths), longest, dtype=torch.int64)
        for depth in range(1, self.deepest + 1):
            chosen, size = depths == depth, 2 * depth + 1
            expressions[chosen, :size] = self._draw(int(chosen.sum()), depth, held, random)
        values = torch.empty_like(depths)
        for depth in range(1, self.deepest + 1):
            chosen = depths == depth
            values[chosen] = evaluate(expressions[chosen, : 2 * depth + 1], self.modulus)
        equals = self.modulus + len(OPERATIONS)
        tokens = scatter(expressions, 2 * depths + 1, longest, equals + 1, random)
        return torch.cat([tokens, torch.full((len(depths), 1), equals), values[:, None]], dim=1)

    def _draw(self, number: int, depth: int, held: bool, random: Generator) -> Tensor:
        """Draw expressions of one depth, held out or not, as tokens, int64 (``number``, 2 * depth + 1)."""
        import torch

        splits = 1 < depth <= self.trained_depth

        def draw(rows: int) -> Tensor:
            expression = torch.randint(self.modulus, (rows, 1), generator=random)
            for _ in range(depth):
                operation = self.modulus + torch.randint(len(OPERATIONS), (rows, 1), generator=random)
                operand = torch.randint(self.modulus, (rows, 1), generator=random)
                left = torch.rand(rows, 1, generator=random) < 0.5
                sides = torch.cat([operand, expression], 1), torch.cat([expression, operand], 1)
                expression = torch.cat([operation, torch.where(left, *sides)], dim=1)
            return expression

        def keep(rows: Tensor) -> Tensor:
            chosen = torch.Generator().manual_seed(self.seed)
            return (held_out(rows, self.held_out_fraction, chosen) == held) | (not splits)

        return draw_rows(
            number,
            draw,
            keep,
            f"data.held_out_fraction must be {'larger' if held else 'smaller'}: no expression of depth {depth} is left "
            f"for {'validation' if held else 'training'}, got {self.held_out_fraction}",
        )


def evaluate(tokens: Tensor, modulus: int) -> Tensor:
    """Return the values, int64 (M,), of expressions in prefix notation of the same length, int64 (M, L).

    Tokens below ``modulus`` are numbers; the next ones are :data:`OPERATIONS`.
    """
    import torch

    number, length = tokens.shape
    # Read from the right: a number is pushed; an operation replaces the two values on top of the stack.
    stack = torch.zeros(number, length + 2, dtype=torch.int64)
    height, rows = torch.zeros(number, dtype=torch.int64), torch.arange(number)
    for token in tokens.flip(1).T:
        left, right = stack[rows, height - 1], stack[rows, height - 2]
        results = torch.stack([left + right, left - right, left * right]) % modulus
        operation = token - modulus
        is_number = operation < 0
        value = torch.where(is_number, token, results[operation.clamp(min=0), rows])
        height = torch.where(is_number, height + 1, height - 1)
        stack[rows, height - 1] = value
    return stack[:, 0]
