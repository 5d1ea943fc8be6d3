"""Show the progress of training, validation, and prediction on one line each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from mom.callbacks.window import log_interval
from mom.runs.progress import SECONDS_BEFORE, ProgressLine, track

T = TypeVar("T")

SHOWN = (  # the most important first, because those that do not fit on the line are dropped
    ("val/loss", "val {:.3f}"),
    ("throughput/tokens_per_second", "{:,.0f} tok/s"),
    ("depth/effective", "depth {:.2f}"),
)
LOSS = "train/loss"
SMOOTHING = 0.9
"""Weight of the past in the mean of the logged losses, an exponential one that is corrected for its start."""


class StepProgressBar(ProgressBar):
    """A line over optimizer steps, not epochs, with loss, validation loss, tokens per second, depth, and time left.

    In a terminal it redraws a single line; if the output goes to a file, it prints a line after each validation, and
    at least once a minute. The loss is the mean of those logged (``trainer.log_every_n_steps``), later ones weighing
    more (:data:`SMOOTHING`), so it needs no device transfers. The time left counts the validations to come.
    Validations and predictions that take longer than two seconds have a line of their own, or share that of training.

    Args:
        name: name of the training phase, at the start of the line.
    """

    def __init__(self, name: str = "train") -> None:
        super().__init__()
        self._name = name
        self._enabled = True
        self._line: ProgressLine | None = None
        self._loss = 0.0
        self._weight = 0.0
        self._logged_step = -1
        # When this process's first step ended, and which step it was. Its own time includes warm-up, so it is not used.
        self._begun: tuple[float, int] | None = None
        self._validation_seconds = 0.0
        self._validations = 0
        self._validation_start = 0.0

    def disable(self) -> None:
        """Hide the line; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the line."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the line."""
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._line = ProgressLine(
            self._name, total, trainer.global_step, delay=0, enabled=self._enabled, is_kept=True
        )
        self._line.update(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Advance to the current optimizer step."""
        if self._line is None:
            return
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, trainer.global_step
        interval = log_interval(trainer)
        numbers = None
        # The previous step was logged. Only then are the numbers read, which may wait for the device.
        if trainer.global_step % interval == 1 % interval and trainer.global_step != self._logged_step:
            self._logged_step = trainer.global_step
            self._smooth(trainer)
            numbers = self._numbers(trainer)
        self._line.update(trainer.global_step, numbers, self._seconds_left(trainer, now))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the line of a validation that is not part of training."""
        self._validation_start = time.monotonic()
        if trainer.state.fn == "validate":
            self._line = self._step_line("evaluating", trainer.num_val_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        if self._line is None or trainer.sanity_checking:
            return
        sizes = trainer.num_val_batches
        done = (_total(sizes[:dataloader_idx]) or 0) + batch_idx + 1
        if trainer.state.fn == "validate":
            self._line.update(done)
        elif time.monotonic() - self._validation_start > SECONDS_BEFORE:
            total = _total(sizes)
            of = "" if total is None else f"/{total:,}"
            self._line.update(trainer.global_step, [f"validating {done:,}{of}"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new validation loss."""
        if trainer.sanity_checking or self._line is None:
            return
        if trainer.state.fn == "validate":
            self._stop()
            return
        now = time.monotonic()
        self._validation_seconds += now - self._validation_start
        self._validations += 1
        if not self._weight:
            self._smooth(trainer)
        self._line.update(trainer.global_step, self._numbers(trainer), self._seconds_left(trainer, now))
        self._line.report()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the line."""
        self._line = self._step_line("predicting", trainer.num_predict_batches)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        if self._line is not None:
            self._line.update((_total(trainer.num_predict_batches[:dataloader_idx]) or 0) + batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the line."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop redrawing and leave the finished line on screen."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the terminal."""
        self._stop()

    def during(self, items: Sequence[T], label: str) -> Iterator[T]:
        """Yield items of a step between those of training; if it takes longer, the line shows how many are done."""
        line = self._line
        if line is None:
            yield from track(items, label, len(items), enabled=self._enabled)
            return
        start, numbers, left = time.monotonic(), line.numbers, line.seconds_left
        for number, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - start > SECONDS_BEFORE:
                line.update(line.done, [f"{label} {number}/{len(items)}"], left)
        line.update(line.done, numbers, left)

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the line."""
        if self._line is not None:
            self._line.print(sep.join(map(str, args)))
        else:
            print(*args, sep=sep, **kwargs)

    def _step_line(self, label: str, sizes: Sequence[int | float]) -> ProgressLine:
        return ProgressLine(label, _total(sizes), enabled=self._enabled)

    def _stop(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _smooth(self, trainer: Trainer) -> None:
        if LOSS in trainer.callback_metrics:
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * float(trainer.callback_metrics[LOSS])
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    def _numbers(self, trainer: Trainer) -> list[str]:
        metrics = trainer.callback_metrics
        loss = [f"loss {self._loss / self._weight:.3f}"] if self._weight else []
        return loss + [form.format(float(metrics[name])) for name, form in SHOWN if name in metrics]

    def _seconds_left(self, trainer: Trainer, now: float) -> float | None:
        """Return the time of the steps to come, at their mean time so far, and of the validations after them."""
        assert self._begun is not None
        started, first = self._begun
        steps = trainer.global_step - first
        if steps <= 0 or trainer.max_steps <= 0:
            return None
        per_step = (now - started - self._validation_seconds) / steps
        left = trainer.max_steps - trainer.global_step
        return per_step * left + self._seconds_of_validations(trainer, per_step, left)

    def _seconds_of_validations(self, trainer: Trainer, per_step: float, left: int) -> float:
        batches = sum(getattr(trainer, "num_val_batches", ()))
        interval = getattr(trainer, "val_check_batch", None)
        if not interval or not math.isfinite(interval) or not math.isfinite(batches):
            return 0.0
        accumulate = max(1, trainer.accumulate_grad_batches)
        # A forward pass is a third of a training step, until a validation has been timed.
        guess = batches * per_step / accumulate / 3
        each = self._validation_seconds / self._validations if self._validations else guess
        return each * math.ceil(left * accumulate / interval)


def _total(sizes: Sequence[int | float]) -> int | None:
    """Return the number of batches of several loaders; None if one does not know its own."""
    total = sum(sizes)
    return int(total) if math.isfinite(total) else None
