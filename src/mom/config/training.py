"""Options of the ``trainer`` group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mom.config.section import Section
from mom.errors import UsageError, as_written

Precision = Literal[
    "64-true",
    "32-true",
    "16-true",
    "bf16-true",
    "16-mixed",
    "bf16-mixed",
    "64",
    "32",
    "16",
    "bf16",
    64,
    32,
    16,
]


_MAY_BE_ZERO = ("limit_val_batches", "limit_predict_batches", "overfit_batches")
"""Numbers of batches for which 0 is allowed."""


@dataclass(frozen=True)
class TrainerConfig(Section):
    """Arguments of Lightning's ``Trainer``, documented there, and a few of our own.

    ``max_steps`` counts optimizer steps of the main phase. ``val_check_interval`` is a number of training batches
    (integer) or a fraction of the epoch (float).

    Args:
        fast_dev_run: run this many batches (true: one) of training and validation, and write no curves or best
            checkpoint, to see whether everything works.
        overfit_batches: train on the same few batches (integer) or fraction of the epoch (float); 0 disables this.
        profiler: measure where the time goes; the report is written to the run directory.
        on_nonfinite: what to do before an optimizer step whose gradient has NaN or infinite values: ``stop``
            training, or ``skip`` the step.
        activation_checkpointing: store only the inputs of blocks and rounds in the forward pass and recompute
            their activations in the backward pass: less memory, about a third more time.
        compile: run ``torch.compile`` on every block and round: the first step takes a minute or more, later steps
            are faster. On the CPU it requires a C++ compiler.
        keep_freed_memory: on the CPU, reuse freed memory in the next step instead of returning it to the kernel,
            which is faster. Linux with glibc only; ignored elsewhere.
    """

    group: ClassVar[str] = "trainer"

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: int | str | list[int] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Precision = "32-true"
    max_steps: int = 300
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    val_check_interval: int | float | None = 100
    check_val_every_n_epoch: int | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    fast_dev_run: bool | int = False
    overfit_batches: int | float = 0
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    log_every_n_steps: int = 10
    num_sanity_val_steps: int = 0
    enable_progress_bar: bool = True
    deterministic: bool | Literal["warn"] | None = None
    detect_anomaly: bool = False
    inference_mode: bool = True
    on_nonfinite: Literal["stop", "skip"] = "stop"
    activation_checkpointing: bool = False
    compile: bool = False
    keep_freed_memory: bool = True

    def _check(self) -> None:
        self._range("num_nodes max_steps accumulate_grad_batches log_every_n_steps", ge=1)
        self._range("check_val_every_n_epoch", ge=1)
        self._range("num_sanity_val_steps", ge=-1)
        self._range("gradient_clip_val", gt=0)
        for name in ("val_check_interval", "limit_train_batches", *_MAY_BE_ZERO):
            self._check_amount(name)
        if not isinstance(self.fast_dev_run, bool):
            self._range("fast_dev_run", ge=1)
        if self.fast_dev_run and self.overfit_batches:
            raise UsageError(
                "trainer.fast_dev_run cannot be combined with trainer.overfit_batches: both limit the batches"
            )
        self._check_devices()

    def _check_amount(self, name: str) -> None:
        """Check a number of batches (integer) or a fraction of the epoch (float)."""
        value = getattr(self, name)
        lowest = 0 if name in _MAY_BE_ZERO else 1
        if isinstance(value, float) and not 0 < value <= 1:
            raise UsageError(
                f"trainer.{name} must be an integer of at least {lowest} or a fraction greater than 0 and up to 1.0, "
                f"got {value}"
            )
        if isinstance(value, int):
            self._range(name, ge=lowest)

    def _check_devices(self) -> None:
        """Check the form of ``devices``; whether the machine has them is checked later."""
        devices = self.devices
        if isinstance(devices, str):
            parts = [part.strip() for part in devices.split(",")]
            is_valid = devices in ("auto", "-1") or all(part.isdigit() for part in parts)
        elif isinstance(devices, list):
            is_valid = bool(devices) and min(devices) >= 0
        else:
            is_valid = devices == -1 or devices > 0
        if not is_valid:
            raise UsageError(
                "trainer.devices must be auto, -1 for all, a number of at least 1, or a list of indices, "
                f"got {as_written(devices)}"
            )
