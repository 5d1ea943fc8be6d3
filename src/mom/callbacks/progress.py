"""Show training progress on one line."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mom.callbacks.window import log_interval

SHOWN = (  # shorter than the labels of tables, to fit on a line
    ("train/loss", "loss {:.3f}"),
    ("val/loss", "val {:.3f}"),
    ("depth/effective", "depth {:.2f}"),
    ("throughput/tokens_per_second", "{:,.0f} tok/s"),
)


class StepProgressBar(ProgressBar):
    """A bar over optimizer steps, not epochs, with loss, validation loss, effective depth, and tokens per second.

    In a terminal it redraws a single line; if the output goes to a file, it prints a line after each validation. It
    shows the numbers logged last (``trainer.log_every_n_steps``), so it needs no device transfers.

    Args:
        name: name of the training phase, at the start of the line.
    """

    def __init__(self, name: str = "train") -> None:
        super().__init__()
        self._name = name
        self._enabled = True
        self._progress: Progress | None = None

    def disable(self) -> None:
        """Hide the bar; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the empty bar."""
        if not self._enabled:
            return
        console = Console(file=sys.stdout)
        if not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._progress.add_task(
            self._name, total=total, completed=trainer.global_step, numbers=""
        )
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Advance to the current optimizer step."""
        if self._progress is None:
            return
        self._progress.update(self._task, completed=trainer.global_step)
        interval = log_interval(trainer)
        if trainer.global_step % interval == 1 % interval:  # the previous step was logged
            self._progress.update(self._task, numbers=self._numbers(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new validation loss."""
        if trainer.sanity_checking or not self._enabled:
            return
        if self._progress is not None:
            self._progress.update(self._task, numbers=self._numbers(trainer))
        elif trainer.state.fn == "fit":
            print(
                f"{self._name}  {trainer.global_step}/{trainer.max_steps}  {self._numbers(trainer)}",
                flush=True,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop redrawing and leave the finished line on screen."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the terminal."""
        self._stop()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        if self._progress is not None:
            self._progress.console.print(*args, sep=sep)
        else:
            print(*args, sep=sep, **kwargs)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    @staticmethod
    def _numbers(trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        return "  ".join(form.format(float(metrics[name])) for name, form in SHOWN if name in metrics)
