"""The base class of module kinds: options, weights, cost, and how modules run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mom.model.options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class PoolKind:
    """A kind of module, registered with :func:`mom.model.registry.register_pool`.

    A module is a norm, a projection of the normalized residual stream, and a projection back into it. The host,
    :class:`mom.model.pools.pool.Pool`, stacks the weights of N modules: ``norm_weight`` and ``norm_bias`` [N, D],
    ``<projection>_weight`` [N, rows, columns], ``<projection>_bias`` [N, columns], and the ``scales``. The
    ``shared_projections`` are `nn.Linear` layers of the host. A kind's
    options are fields declared with :func:`mom.model.declaration.option` and set in a pool's entry in ``pools``.
    Import PyTorch inside methods to keep the options readable without it.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    """The kind's name in tables and figures."""
    num_modules: ClassVar[int] = 4
    """Default number of modules in a pool."""
    in_plain_blocks: ClassVar[bool] = False
    """Whether plain blocks have such a module under the kind's name, for upcycling to copy."""
    attends: ClassVar[bool] = False
    """Whether a step calls ``context.attend``, which needs a cache layer."""
    streams: ClassVar[bool] = False
    """Whether a step calls ``context.with_past``, which needs a cache layer."""
    folds: ClassVar[bool] = True
    """Whether the first projection is a matmul, into which the norms' scales may be folded."""

    def projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        """Return (rows, columns) of one module's first and last projection, by name."""
        raise NotImplementedError

    def shared_projections(self, options: ModelOptions) -> dict[str, tuple[int, int]]:
        """Return (rows, columns) of the linear layers that all modules share, by name; a step runs each once."""
        return {}

    def scales(self, options: ModelOptions) -> dict[str, int | None]:
        """Return the lengths of a module's other vectors, which are initialized to 1; ``None`` omits a vector."""
        return {}

    def run(self, pool: Any, x: Any, routing: Any, folded: Any, context: Any) -> Any:
        """Run one step.

        Args:
            pool: the host.
            x: residual stream, [B, T, D].
            routing: the modules and weights of each token, a :class:`mom.model.routing.Routing`.
            folded: the pool's weights for this forward pass, a :class:`mom.model.pools.rows.Folded`.
            context: the rest of the sequence, a :class:`mom.model.attention.StepContext`.

        Returns:
            The update of the residual stream, [B, T, D], 0 for tokens that run no module.
        """
        raise NotImplementedError

    def num_parameters(self, options: ModelOptions) -> int:
        """Return the number of parameters of a module."""
        parts = options.components
        norm = options.d_model * (1 if parts.rms_norm else 2)
        weights = sum(rows * columns for rows, columns in self.projections(options).values())
        biases = sum(columns for _, columns in self.projections(options).values()) if parts.bias else 0
        return norm + weights + biases + sum(length or 0 for length in self.scales(options).values())

    def flops(self, options: ModelOptions) -> int:
        """Return the FLOPs of a module per token: 2 per weight."""
        return 2 * sum(rows * columns for rows, columns in self.projections(options).values())

    def shared_flops(self, options: ModelOptions) -> int:
        """Return the FLOPs per token of a step's shared projections: 2 per weight."""
        return 2 * sum(rows * columns for rows, columns in self.shared_projections(options).values())

    def flops_per_key(self, options: ModelOptions) -> int:
        """Return the FLOPs of a step per token and attended key, regardless of the number of modules."""
        return 0

    def cached_numbers(self, options: ModelOptions) -> int:
        """Return the numbers per token that a step stores in the cache."""
        return 0
