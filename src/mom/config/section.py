"""One frozen dataclass for each Hydra group; each checks its own types and ranges when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_type_hints

from mom.config.checks import conform, in_range, known_names
from mom.errors import RequestError


@dataclass(frozen=True)
class Section:
    """A group of options. Subclasses name the group, their fields are its options.

    Making one checks every field's type (an integer is fine for a float, a list for a tuple), then its range.

    Raises:
        RequestError: for the first option that cannot be.
    """

    group: ClassVar[str]

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Make the section from a mapping; a name it does not have is refused with the nearest spelling."""
        known_names(cls.group, given, [field.name for field in dataclasses.fields(cls)])
        return cls(**given)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            option = f"{self.group}.{field.name}"
            value = conform(option, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        self._check()

    def _check(self) -> None:
        """Refuse values of the right type that cannot be; overridden where there are such."""

    def _range(self, names: str, **bounds: float) -> None:
        for name in names.split():
            in_range(f"{self.group}.{name}", getattr(self, name), **bounds)


@dataclass(frozen=True)
class TaskConfig(Section):
    """What to do. Each task has a section of its own, which adds its options to this one.

    Args:
        name: the task, a module of :mod:`mom.tasks`.
    """

    group: ClassVar[str] = "task"
    # Whether the task makes a model by the model and router groups, which are then checked together.
    builds_model: ClassVar[bool] = False
    # Whether the task needs PyTorch, and with it devices, callbacks and loggers to check.
    computes: ClassVar[bool] = True
    # Which kinds of data the task works on; empty where it reads none.
    data_kinds: ClassVar[tuple[str, ...]] = ()
    # Options that the command line also knows without ``task.`` in front.
    top_level: ClassVar[tuple[str, ...]] = ()
    # Whether the task cannot do without ``init``, and whether it can go on from ``ckpt`` or ``resume``.
    needs_init: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    # Whether `ckpt` may name the weights in the place of `init`.
    reads_ckpt: ClassVar[bool] = False

    name: str

    def takes_chosen_model(self) -> bool:
        """Whether this request's task makes the model of the model group, and not others by name."""
        return self.builds_model


@dataclass(frozen=True)
class DataSection(Section):
    """Where examples come from and how they become batches. Each kind of data has a section of its own.

    Args:
        kind: what the examples are.
        path: file or folder of the user's own data.
        tokenizer: Hub name or local folder or file.
        sequence_length: tokens in an example at most.
        batch_size: examples in a batch, per process.
        num_workers: processes that load batches; 0 loads in the training process.
    """

    group: ClassVar[str] = "data"

    kind: str
    path: str | None = None
    tokenizer: str | None = None
    sequence_length: int = 128
    batch_size: int = 8
    num_workers: int = 0

    def _check(self) -> None:
        self._range("sequence_length", least=2)
        self._range("batch_size", least=1)
        self._range("num_workers", least=0)


@dataclass(frozen=True)
class DataConfig(DataSection):
    """Text for a language model: how it becomes tokens, and how tokens become windows.

    Args:
        corpus: where the text is from: the standard library of the running Python, the installed packages, the
            user's own files at ``path``, a data set of the ``datasets`` library, or token files that exist.
        path: for ``corpus=text`` a file or folder of text; for ``datasets`` a Hub id, or a local folder or file
            that the library reads; for ``token_files`` a folder with ``train.bin`` and ``val.bin``; null for
            the others.
        text_column: which column of a data set, ``.jsonl`` or ``.parquet`` file holds the text.
        subset: which configuration of a data set, for ``datasets``.
        split: which split of a data set, for ``datasets``; validation documents are taken out of it.
        streaming: read a data set as it is downloaded, keeping none of it.
        tokenizer: Hub name or local folder or file; None trains a byte-level BPE on the corpus.
        tokenizer_vocab_size: vocabulary of the trained tokenizer: the 256 bytes, the end of text, and merges.
        sequence_length: tokens in a window.
        validation_fraction: share of documents kept for validation.
        max_bytes: stop after so many UTF-8 bytes of text; None takes all.
        cache_dir: where token files are kept; None means ``$MOM_CACHE`` or ``~/.cache/mom``.
        num_processes: processes that tokenise; None means one for each CPU.
    """

    kind: Literal["language_modeling"] = "language_modeling"
    corpus: Literal["python_stdlib", "python_packages", "text", "datasets", "token_files"] = "python_stdlib"
    text_column: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    tokenizer_vocab_size: int = 4096
    validation_fraction: float = 0.01
    max_bytes: int | None = None
    cache_dir: str | None = None
    num_processes: int | None = None

    def _check(self) -> None:
        super()._check()
        self._range("tokenizer_vocab_size", least=257)
        self._range("max_bytes num_processes", least=1)
        self._range("validation_fraction", above=0, below=1)
        wanted = {
            "text": "a file or folder of text, for data=text",
            "datasets": "a Hub id, or a folder or file that the datasets library reads",
            "token_files": "a folder with train.bin and val.bin, for data=token_files",
        }
        if self.corpus in wanted and not self.path:
            raise RequestError("data.path", "null", wanted[self.corpus])
        if self.corpus not in wanted and self.path is not None:
            raise RequestError(
                "data.path", self.path, f"null for data={self.corpus}; files are read by data=text"
            )
        if self.corpus == "token_files" and self.tokenizer is None:
            raise RequestError("data.tokenizer", "null", "the one that made the token files, such as gpt2")
        for name in ("text_column", "split"):
            if not getattr(self, name):
                raise RequestError(f"data.{name}", "''", f"the name of a {name.removeprefix('text_')}")


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

    ``max_steps`` counts optimiser steps of the main phase. ``val_check_interval`` counts training batches if
    it is an integer and is a share of the epoch if it is a float. Four options are not Lightning's:

    Args:
        on_nonfinite: what to do before an optimiser step whose gradient holds NaN or infinity: ``stop``, or
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
