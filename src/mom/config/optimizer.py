"""Options of the ``optimizer`` group: one section per shipped optimizer, and one for any other class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from mom.config.checks import in_range
from mom.config.nodes import NodeConfig
from mom.config.plugins import is_plugin
from mom.config.section import Section
from mom.errors import UsageError

_UNSUITABLE = {
    "torch.optim.LBFGS": "it has no parameter groups",
    "torch.optim.SparseAdam": "the gradients of the model are not sparse",
    "torch.optim.lr_scheduler.ReduceLROnPlateau": "it follows a validation metric, not the step",
}


@dataclass(frozen=True)
class OptimizerSection(Section):
    """An optimizer class and the learning-rate schedule.

    Args:
        _target_: the optimizer, a class of ``torch.optim`` or of a plugin.
        lr: peak learning rate.
        weight_decay: weight decay of matrices; vectors are not decayed.
        router_lr_multiplier: learning rate of the routers as a multiple of ``lr``.
        warmup_steps: steps of linear warmup from 0 to ``lr``.
        schedule: after the warmup: ``cosine`` and ``linear`` decay until the last step, ``constant`` does not decay,
            ``wsd`` (warmup, stable, decay) is constant and then decays linearly over the last steps.
        decay_fraction: fraction of all steps in which ``wsd`` decays.
        min_lr_ratio: final learning rate as a fraction of ``lr``.
        scheduler: a scheduler of ``torch.optim.lr_scheduler`` or of a plugin, as ``_target_`` and arguments, stepped
            after each optimizer step; it replaces the schedule, and ``warmup_steps`` must be 0.
    """

    group: ClassVar[str] = "optimizer"

    _target_: str = ""
    lr: float = 1e-3
    weight_decay: float = 0.1
    router_lr_multiplier: float = 1.0
    warmup_steps: int = 30
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    decay_fraction: float = 0.2
    min_lr_ratio: float = 0.1
    scheduler: dict[str, Any] | None = None

    def _check(self) -> None:
        self._range("lr", gt=0)
        self._range("weight_decay warmup_steps router_lr_multiplier", ge=0)
        self._range("min_lr_ratio", ge=0, le=1)
        self._range("decay_fraction", gt=0, le=1)
        _check_origin(self.node)
        if self.scheduler is not None:
            _check_origin(self._scheduler_node)
            if self.warmup_steps:
                raise UsageError(
                    "optimizer.scheduler replaces the whole schedule, so optimizer.warmup_steps must be 0, "
                    f"got {self.warmup_steps}"
                )

    @property
    def arguments(self) -> dict[str, Any]:
        """Further keyword arguments of the class."""
        return {}

    @property
    def node(self) -> NodeConfig:
        """The optimizer's class and arguments."""
        return NodeConfig.from_mapping("optimizer", {"_target_": self._target_, **self.arguments})

    @property
    def _scheduler_node(self) -> NodeConfig:
        return NodeConfig.from_mapping("optimizer.scheduler", self.scheduler)

    def build_scheduler(self, optimizer: Any) -> Any:
        """Build ``scheduler`` for an optimizer; rates given as arguments keep the routers' multiple.

        Raises:
            UsageError: it is not a scheduler, or rejects its arguments.
        """
        from torch.optim.lr_scheduler import LRScheduler

        node = self._scheduler_node
        node.check(LRScheduler)
        rates = {
            name: [value * group["lr"] / self.lr for group in optimizer.param_groups]
            for name, value in node.arguments.items()
            if name in ("max_lr", "base_lr") and isinstance(value, int | float)
        }
        return node.instantiate(optimizer=optimizer, **rates)

    def check_buildable(self) -> None:
        """Check that the optimizer and the scheduler can be built. Imports PyTorch.

        Raises:
            UsageError: a class cannot be used, or rejects its arguments.
        """
        import torch

        self.node.check(torch.optim.Optimizer)
        if self.weight_decay and not self.node.accepts("weight_decay"):
            raise UsageError(
                f"optimizer.weight_decay must be 0 with {self._target_}, which has none, got {self.weight_decay:g}"
            )
        weight = torch.nn.Parameter(torch.zeros(1, 1))
        optimizer = self.node.instantiate(
            params=[{"params": [weight], "lr": self.lr, "weight_decay": self.weight_decay}], lr=self.lr
        )
        if self.scheduler is not None:
            self.build_scheduler(optimizer)


@dataclass(frozen=True)
class OptimizerConfig(OptimizerSection):
    """AdamW and its learning-rate schedule.

    Args:
        betas: decay rates of the running means of the gradient and of its square.
        eps: term added to the denominator.
    """

    _target_: str = "torch.optim.AdamW"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5

    def _check(self) -> None:
        super()._check()
        self._range("eps", gt=0)
        for beta in self.betas:
            in_range("optimizer.betas", beta, ge=0, lt=1)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"betas": self.betas, "eps": self.eps}


@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """Muon for the matrices of blocks and modules, AdamW for all other parameters.

    Args:
        momentum: decay rate of Muon's running mean of the gradient.
        nesterov: use Nesterov momentum.
        ns_steps: steps of the Newton–Schulz iteration.
        adjust_lr_fn: how the learning rate depends on the shape: ``match_rms_adamw`` (arXiv 2502.16982) makes
            updates as large as AdamW's, so that both use ``lr``; ``original`` is Muon's own rule.
    """

    _target_: str = "torch.optim.Muon"
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"

    def _check(self) -> None:
        super()._check()
        self._range("momentum", ge=0, lt=1)
        self._range("ns_steps", ge=1, le=99)

    @property
    def muon_arguments(self) -> dict[str, Any]:
        """Arguments of Muon; :attr:`arguments` are AdamW's."""
        return {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "ns_steps": self.ns_steps,
            "adjust_lr_fn": self.adjust_lr_fn,
        }

    @property
    def node(self) -> NodeConfig:
        """Muon's class and arguments."""
        return NodeConfig.from_mapping("optimizer", {"_target_": self._target_, **self.muon_arguments})


@dataclass(frozen=True)
class AdafactorConfig(OptimizerSection):
    """Adafactor, which stores a row and a column of second moments per matrix.

    Args:
        beta2_decay: exponent by which the decay rate of the second moments approaches 1 with the step.
        eps: smallest squared gradient (null: the precision's), and smallest root mean square of a weight, by which
            updates are scaled.
        d: largest root mean square of an update before it is scaled.
    """

    _target_: str = "torch.optim.Adafactor"
    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0

    def _check(self) -> None:
        super()._check()
        self._range("beta2_decay", le=0)
        self._range("d", ge=1)
        for value in self.eps:
            in_range("optimizer.eps", value, ge=0)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"beta2_decay": self.beta2_decay, "eps": self.eps, "d": self.d}


@dataclass(frozen=True)
class OtherOptimizer(OptimizerSection):
    """Any other optimizer.

    Args:
        extra: keyword arguments of the class; in a request they stand beside the other options.
    """

    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """Create the section; options that are not those of every optimizer are arguments of the class."""
        own = {option.name for option in dataclasses.fields(cls)}
        known = {name: value for name, value in given.items() if name in own}
        others = {name: value for name, value in given.items() if name not in own}
        return cls(**{**known, "extra": {**known.get("extra", {}), **others}})

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            name: tuple(value) if isinstance(value, list) else value for name, value in self.extra.items()
        }

    def check_buildable(self) -> None:
        of_adamw = [name for name in ("betas", "eps") if name in self.extra and not self.node.accepts(name)]
        if of_adamw:
            raise UsageError(
                f"optimizer.{of_adamw[0]} cannot be combined with {self._target_}, which has no such argument; use "
                "optimizer=torch instead of optimizer=adamw"
            )
        super().check_buildable()


OPTIMIZERS: Mapping[str, type[OptimizerSection]] = {
    section._target_: section for section in (OptimizerConfig, MuonConfig, AdafactorConfig)
}
"""Sections of the shipped optimizers by class."""


def optimizer_section(given: Mapping[str, Any]) -> OptimizerSection:
    """Create the section for the optimizer in ``given``, by default AdamW.

    Raises:
        UsageError: for an invalid option.
    """
    target = given.get("_target_", OptimizerConfig._target_)
    if not target:
        raise UsageError("optimizer=torch requires optimizer._target_: a class, such as torch.optim.SGD")
    section = OPTIMIZERS.get(target, OtherOptimizer) if isinstance(target, str) else OtherOptimizer
    return section.from_mapping(given)


def _check_origin(node: NodeConfig) -> None:
    """Reject a target that is neither PyTorch's nor a plugin's, and those that cannot train our models."""
    module = node.target.rpartition(".")[0]
    if module not in ("torch.optim", "torch.optim.lr_scheduler") and not is_plugin(module):
        raise UsageError(
            f"{node.option}._target_ must be a class of torch.optim or of a plugin (plugins=[{module}]), "
            f"got {node.target}"
        )
    if node.target in _UNSUITABLE:
        raise UsageError(f"{node.option}._target_ cannot be {node.target}: {_UNSUITABLE[node.target]}")
