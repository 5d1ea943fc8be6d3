"""Noise on the routers' choices, taken away step by step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mom.model import MoMConfig
from mom.model.router import NOISE_KINDS, Router


class RouterNoise(Callback):
    """Lets the routers explore in training: their logits are ranked with noise added that anneals to nothing.

    Before step s of the phase the noise is multiplied by ``scale · max(0, 1 - s / steps)``, which depends on the
    step alone; the noise itself comes of PyTorch's random numbers, which checkpoints hold, so a resumed run goes
    on exactly. The noise decides which modules run; their weights are those of the scores without it. Evaluation
    has none. With ``gumbel`` at scale 1 the K choices are a sample without replacement by the probabilities
    (Kool et al. 2019, arXiv 1903.06059); ``gaussian`` is the noise of Shazeer et al. 2017 (arXiv 1701.06538,
    eq. 4) with a scale that is not learned.

    Args:
        scale: of the noise at the start, in units of the logits over temperature; 0 for none.
        steps: optimizer steps over which it goes to 0; ``None``: all of the phase.
        kind: ``gaussian`` or ``gumbel``.
    """

    def __init__(self, scale: float = 0.0, steps: int | None = None, kind: str = "gumbel") -> None:
        if not scale >= 0:
            raise ValueError(f"scale: {scale}; a number of at least 0")
        if steps is not None and steps < 1:
            raise ValueError(f"steps: {steps}; an integer of at least 1, or null")
        if kind not in NOISE_KINDS:
            raise ValueError(f"kind: {kind}; one of {', '.join(NOISE_KINDS)}")
        self._scale, self._steps, self._kind = scale, steps, kind

    def check_fits(self, config: MoMConfig, max_steps: int) -> None:
        """Refuse noise where nothing is ranked by what was learned.

        Args:
            config: of the model to be trained.
            max_steps: optimizer steps of the phase.

        Raises:
            ValueError: ``scale: <given>; <allowed>``.
        """
        if self._scale and config.num_stages and not config.router_kind.learns:
            raise ValueError(f"scale: {self._scale}; 0 with router {config.router}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set the noise of this micro-batch's step."""
        if self._scale == 0:
            return
        steps = trainer.max_steps if self._steps is None else self._steps
        left = max(0.0, 1 - trainer.global_step / steps)
        self._set(pl_module, self._scale * left)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a model without noise."""
        self._set(pl_module, 0.0)

    def _set(self, pl_module: LightningModule, scale: float) -> None:
        for router in pl_module.modules():
            if isinstance(router, Router):
                router.set_noise(self._kind if scale > 0 else None, scale)
