"""The options of the optimizer and of Lightning's Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mom.config.checks import in_range
from mom.config.section import Section
from mom.errors import RequestError


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule.

    Args:
        lr: peak learning rate.
        weight_decay: decoupled decay of the weight matrices; vectors are never decayed.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        warmup_steps: steps of linear warm-up from 0 to ``lr``.
        min_lr_ratio: the schedule ends at ``min_lr_ratio * lr``.
        router_lr_multiplier: learning rate of the routers, in units of ``lr``.
        schedule: after the warm-up, ``cosine`` down to the end or ``constant``.
    """

    group: ClassVar[str] = "optimizer"

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    warmup_steps: int = 30
    min_lr_ratio: float = 0.1
    router_lr_multiplier: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"

    def _check(self) -> None:
        self._range("lr eps", above=0)
        self._range("weight_decay warmup_steps router_lr_multiplier", least=0)
        self._range("min_lr_ratio", least=0, most=1)
        for beta in self.betas:
            in_range("optimizer.betas", beta, least=0, below=1)


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


@dataclass(frozen=True)
class TrainerConfig(Section):
    """Lightning's ``Trainer``, by its own names; see its documentation for each.

    ``max_steps`` counts optimizer steps of the main phase. ``val_check_interval`` counts training batches if
    it is an integer and is a share of the epoch if it is a float. Four options are not Lightning's:

    Args:
        on_nonfinite: what to do before an optimizer step whose gradient holds NaN or infinity: ``stop``, or
            ``skip`` the step.
        activation_checkpointing: keep only the input of every block and round in the forward pass and compute
            the rest again in the backward pass: less memory, about a third more time.
        compile: `torch.compile` every block and round: faster steps after a first one that takes a minute or more.
            On the CPU it needs a C++ compiler.
        keep_freed_memory: in runs on the CPU keep the memory that one step frees for the next one, in the place
            of giving it back to the kernel; faster. Linux with glibc only, elsewhere it does nothing.
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
    val_check_interval: int | float | None = 100
    check_val_every_n_epoch: int | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
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
        self._range("num_nodes max_steps accumulate_grad_batches log_every_n_steps", least=1)
        self._range("check_val_every_n_epoch", least=1)
        self._range("num_sanity_val_steps", least=-1)
        self._range("gradient_clip_val", above=0)
        for name in ("val_check_interval", "limit_train_batches", "limit_val_batches"):
            self._check_amount(name)
        self._check_devices()

    def _check_amount(self, name: str) -> None:
        """A count of batches (integer) or a share of the epoch (float)."""
        value = getattr(self, name)
        least = 1 if name != "limit_val_batches" else 0
        if isinstance(value, float) and not 0 < value <= 1:
            raise RequestError(
                f"trainer.{name}", value, f"an integer of at least {least}, or a share above 0 and up to 1.0"
            )
        if isinstance(value, int):
            self._range(name, least=least)

    def _check_devices(self) -> None:
        allowed = "auto, -1 for all, a count of at least 1, or a list of indices"
        if isinstance(self.devices, int) and (self.devices == 0 or self.devices < -1):
            raise RequestError("trainer.devices", self.devices, allowed)
        if isinstance(self.devices, str):
            parts = [part.strip() for part in self.devices.split(",")]
            if self.devices != "auto" and self.devices != "-1" and not all(part.isdigit() for part in parts):
                raise RequestError("trainer.devices", self.devices or "''", allowed)
        if isinstance(self.devices, list) and (not self.devices or min(self.devices) < 0):
            raise RequestError("trainer.devices", self.devices, allowed)
