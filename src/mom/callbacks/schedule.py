"""Schedules: change a scalar of the model or the optimizer along a curve during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mom.callbacks.scalars import SCALARS
from mom.callbacks.window import StepCallback, get_model_config, skipped_in_a_row
from mom.errors import UsageError, did_you_mean
from mom.model import MoMConfig
from mom.model.rules import options_from

CURVES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1 - math.cos(math.pi * progress)),
    "step": lambda progress: float(progress >= 1),
}
"""Curves: progress from 0 to 1 -> how far the scalar has moved from ``start`` (0) to ``end`` (1)."""


class Schedule(StepCallback):
    """Changes a scalar along a curve during training and logs it as ``schedule/<name>``.

    The scalar follows the curve from ``start`` at ``first_step`` to ``end`` at ``last_step`` and then stays there.
    Before ``first_step`` the schedule does not touch the scalar, so several schedules can change it in turn: of those
    that have begun, the last in the list wins. The value depends only on the step, so a resumed run continues exactly.
    After training the model's configured values are restored; parameters stay as they are. A checkpoint saved during
    training holds the values at that step, and evaluation, analysis, and export use them. For a plain transformer
    (``num_stages: 0``) schedules do nothing.

    Args:
        name: the scalar, a name in :data:`mom.callbacks.scalars.SCALARS`.
        start: value at ``first_step``; ``None``: the configured value.
        end: value from ``last_step`` on; ``None``: the configured value. With neither, the schedule does nothing.
        curve: ``constant`` (stays at ``start``), ``linear``, ``cosine`` (half a cosine), or ``step`` (from ``start`` to
            ``end`` at ``last_step``).
        first_step: optimizer step at which the schedule begins.
        last_step: optimizer step at which it ends; ``None``: the end of the phase.

    Raises:
        ValueError: an argument is invalid; the message starts with its name.
    """

    def __init__(
        self,
        name: str,
        start: float | None = None,
        end: float | None = None,
        curve: str = "linear",
        first_step: int = 0,
        last_step: int | None = None,
    ) -> None:
        for argument, value, known in (("name", name, SCALARS), ("curve", curve, CURVES)):
            if value not in known:
                hint = did_you_mean(value, known)
                raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value}{hint}")
        self.name, self.scalar = name, SCALARS[name]
        for argument, number in (("start", start), ("end", end)):
            if number is not None:
                self.scalar.check_value(argument, number)
        if first_step < 0:
            raise ValueError(f"first_step must be at least 0, got {first_step}")
        if last_step is not None and last_step <= first_step:
            raise ValueError(f"last_step must be above first_step ({first_step}), got {last_step}")
        self.start, self.end, self.curve = start, end, curve
        self.first_step, self.last_step = first_step, last_step
        self._configured = 0.0
        self._current: float | None = None
        self._updated_step = 0

    @property
    def is_active(self) -> bool:
        """Whether the schedule changes anything."""
        return self.start is not None or self.end is not None

    def check_fits(
        self, config: MoMConfig, max_steps: int, callbacks: Sequence[Callback | None] = ()
    ) -> None:
        """Check the schedule against the model and the length of the phase.

        Args:
            config: the configuration of the model to be trained.
            max_steps: optimizer steps of the phase.
            callbacks: all callbacks of the phase, including this one.

        Raises:
            ValueError: they do not fit; the message starts with the name of an argument.
        """
        if not self.is_active or not config.num_stages:
            return
        self.scalar.check_model(config)
        last = max_steps if self.last_step is None else self.last_step
        if self.first_step >= last:
            raise ValueError(
                f"first_step must be below {last}, the steps of the phase, got {self.first_step}"
            )
        schedules = [other for other in callbacks if isinstance(other, Schedule) and other.is_active]
        same_name = [other for other in schedules if other.name == self.name]
        configured = self.scalar.configured(config)
        if configured is None:  # an option of the optimizer
            return
        start, end = self._ends(configured)
        for argument, value in (("start", start), ("end", end)):
            if self.scalar.most(config) < value:
                raise ValueError(f"{argument} must be at most {self.scalar.most(config):g}, got {value:g}")
            # A checkpoint must be able to hold the value.
            options = {**config.as_mapping(), **self.scalar.options(config, value)}
            options_from(options)
        if self.scalar.starts_as_configured and self.first_step == 0 and start != configured:
            raise ValueError(f"start must be {configured:g}, the model's configured value, got {start:g}")
        if self.scalar.ends_as_configured and same_name[-1:] in ([], [self]):
            if end != configured or self.curve == "constant":
                raise ValueError(
                    f"end must be {configured:g}, the model's configured value, which the trained model has; "
                    f"got {start if self.curve == 'constant' else end:g}"
                )
            is_continuous = self.curve != "step" and not self.scalar.is_integer
            if self._at(max_steps if is_continuous else max_steps - 1, max_steps, configured) != end:
                raise ValueError(
                    f"last_step must let {self.name} reach {end:g} before the last of {max_steps} steps, got {last}"
                )

    def value(self, step: int, max_steps: int) -> float:
        """Return the value for the next optimizer step after ``step`` of ``max_steps`` steps."""
        return self._at(step, max_steps, self._configured)

    def model_options(self, config: MoMConfig) -> dict[str, Any]:
        """Return the model options that the scalar replaces at present, for a checkpoint."""
        return {} if self._current is None else self.scalar.options(config, self._current)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the schedule, and store the configured value before any schedule changes it."""
        config = get_model_config(pl_module)
        try:
            self.check_fits(config, trainer.max_steps, trainer.callbacks)  # type: ignore[attr-defined]
        except ValueError as reason:
            raise UsageError(f"schedule of {self.name}: {reason}") from reason
        configured = self.scalar.configured(config)
        self._configured = pl_module.hparams["optimizer"][self.name] if configured is None else configured

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the scalar, since a resumed run may validate before its first step."""
        self._set(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set and log the value of this micro-batch's optimizer step."""
        super().on_train_batch_start(trainer, pl_module)
        self._updated_step = trainer.global_step - skipped_in_a_row(pl_module)
        if self._applies(trainer, pl_module):
            self._set(trainer, pl_module)
            value = self.value(trainer.global_step, trainer.max_steps)
            pl_module.log(f"schedule/{self.name}", value, on_step=True, on_epoch=False, batch_size=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Shift parameters after an optimizer step; after the last, set the final value for the last validation.

        A skipped step shifts nothing; the next one makes up for it.
        """
        step = trainer.global_step
        if not self.step_has_ended(trainer) or not self._applies(trainer, pl_module):
            return
        before, now = (self.value(taken, trainer.max_steps) for taken in (self._updated_step, step))
        if now != before and not skipped_in_a_row(pl_module):
            self.scalar.shift(pl_module, now - before)
        # The learning-rate scheduler has just overwritten a scalar of the optimizer.
        if step >= trainer.max_steps or not self.scalar.of_model:
            self._set(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the model's configured value."""
        self._restore(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the model's configured value."""
        self._restore(trainer, pl_module)

    def _at(self, step: int, max_steps: int, configured: float) -> float:
        last = max_steps if self.last_step is None else self.last_step
        progress = min(1.0, max(0.0, (step - self.first_step) / (last - self.first_step)))
        moved = CURVES[self.curve](progress)
        start, end = self._ends(configured)
        return self.scalar.rounded(start * (1 - moved) + end * moved)

    def _ends(self, configured: float) -> tuple[float, float]:
        """Return the first and last value."""
        start = configured if self.start is None else self.start
        return start, configured if self.end is None else self.end

    def _applies(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return whether the schedule is active, has begun, and the model has stages."""
        has_begun = trainer.global_step >= self.first_step
        return self.is_active and has_begun and bool(get_model_config(pl_module).num_stages)

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._applies(trainer, pl_module) and self.scalar.of_model:
            self.scalar.set(trainer, pl_module, self._configured)
            self._current = None

    def _set(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._applies(trainer, pl_module):
            self._current = self.value(trainer.global_step, trainer.max_steps)
            self.scalar.set(trainer, pl_module, self._current)
