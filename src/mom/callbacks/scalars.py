"""The scalars that a schedule can move, by name: how to check and how to set each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.distributed.tensor import DTensor, distribute_tensor

from mom.callbacks.window import get_model_config
from mom.model import MoMConfig
from mom.model.routers.router import Router


class Scalar:
    """A scalar of the model or of the optimizer.

    Attributes:
        of_model: the model has it, so it goes back to its configured value after training.
        is_integer: it takes integer values only.
        starts_as_configured: a schedule from step 0 must start at the configured value.
        ends_as_configured: a schedule must end at the configured value, because the value decides what the model
            computes and checkpoints do not hold it.
    """

    of_model = True
    is_integer = False
    starts_as_configured = False
    ends_as_configured = False

    def check_value(self, argument: str, value: float) -> None:
        """Check a value on its own.

        Raises:
            ValueError: naming ``argument``.
        """
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{argument} must be a number of at least 0, got {value}")

    def check_model(self, config: MoMConfig) -> None:
        """Check that a model has the scalar.

        Raises:
            ValueError: starting with ``name=``.
        """

    def configured(self, config: MoMConfig) -> float | None:
        """Return the value without a schedule; ``None``: the optimizer's option of the scalar's name."""
        raise NotImplementedError

    def most(self, config: MoMConfig) -> float:
        """Return the largest value."""
        return math.inf

    def rounded(self, value: float) -> float:
        """Return the nearest value that the scalar can have."""
        return value

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        """Set the scalar."""

    def shift(self, pl_module: LightningModule, difference: float) -> None:
        """Move parameters after an optimizer step by a difference of the scalar."""


class Option(Scalar):
    """An option that the losses read from the model's configuration in each step.

    Args:
        name: the option.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def configured(self, config: MoMConfig) -> float:
        return float(getattr(config, self.name))

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        setattr(get_model_config(pl_module), self.name, value)


class Noise(Scalar):
    """Scale of the noise with which logits are ranked in training, in units of the logits over temperature.

    The noise decides which modules run; their weights are those of the scores without it. Evaluation has none. At scale
    1 ``gumbel`` draws the K choices by their probabilities, without replacement (Kool et al. 2019, arXiv 1903.06059).
    ``gaussian`` is the noise of Shazeer et al. 2017 (arXiv 1701.06538, eq. 4) with a given scale instead of a learned
    one. The random numbers are PyTorch's, which checkpoints hold.

    Args:
        kind: ``gumbel`` or ``gaussian``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def check_model(self, config: MoMConfig) -> None:
        _check_learns(f"{self.kind}_noise", config)

    def configured(self, config: MoMConfig) -> float:
        return 0.0

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        for router in _routers(pl_module):
            if value > 0:
                router.set_noise(self.kind, value)
            elif router.noise_kind == self.kind:
                router.set_noise(None)


class PriorStrength(Scalar):
    """``router_prior_strength``: how strongly the routers' prior prefers the order of a plain transformer.

    The prior is a learned bias. A strong one makes an upcycled model compute what the plain transformer did; a schedule
    to 0 hands the decisions over to the routers while they learn. After each optimizer step the prior moves by the
    difference in strength; what was learned on top of it stays.
    """

    starts_as_configured = True

    def check_model(self, config: MoMConfig) -> None:
        if config.router_prior == "none" or config.router_prior_strength == 0:
            raise ValueError("name=prior_strength requires a router.router_prior with a strength above 0")

    def configured(self, config: MoMConfig) -> float:
        return float(config.router_prior_strength)

    @torch.no_grad()
    def shift(self, pl_module: LightningModule, difference: float) -> None:
        config = get_model_config(pl_module)
        share = difference / config.router_prior_strength
        for router in _routers(pl_module):
            if router.prior is not None:
                # In float64, so that the parts of a linear schedule are those of a division in float32.
                part = (router.initial_prior().double() * share).float().to(router.prior.device)
                if isinstance(router.prior, DTensor):
                    part = distribute_tensor(part, router.prior.device_mesh, router.prior.placements)
                router.prior.add_(part)


class Integer(Scalar):
    """An integer of at least 1."""

    is_integer = True
    ends_as_configured = True

    def check_value(self, argument: str, value: float) -> None:
        if value < 1 or value != int(value):
            raise ValueError(f"{argument} must be an integer of at least 1, got {value:g}")

    def most(self, config: MoMConfig) -> float:
        most = self.configured(config)
        assert most is not None
        return most

    def rounded(self, value: float) -> int:
        return math.floor(value + 0.5)


class TopK(Integer):
    """K, the modules chosen in a step, SKIP included. Shapes change with it, so a compiled model is compiled again.

    With pools of several K it is the smallest; the others are lower than configured by as many. ``normalize_weights:
    auto`` follows the K of the moment, and validations during training use it too.
    """

    def configured(self, config: MoMConfig) -> float:
        return min(layout.num_selected() for layout in config.pools())

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        lower = int(self.configured(get_model_config(pl_module)) - value)
        for router in _routers(pl_module):
            router.set_top_k(router.layout.num_selected() - lower)


class NumRounds(Integer):
    """H, the rounds of a stage: with fewer the first ones run, and depth and cost are those of the shorter graph."""

    def configured(self, config: MoMConfig) -> float:
        return config.num_rounds

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        get_model_config(pl_module).num_rounds = int(value)
        for stage in cast(Any, pl_module.model).model.stages:
            stage.num_rounds = int(value)


class Temperature(Scalar):
    """``router.temperature``, which divides the routers' logits."""

    ends_as_configured = True

    def check_value(self, argument: str, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{argument} must be a number above 0, got {value}")

    def check_model(self, config: MoMConfig) -> None:
        _check_learns("temperature", config)

    def configured(self, config: MoMConfig) -> float:
        return config.temperature

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        for router in _routers(pl_module):
            router.set_temperature(None if value == router.config.temperature else value)


class RouterLearningRate(Scalar):
    """``optimizer.router_lr_multiplier``: learning rate of the routers in units of that of everything else."""

    of_model = False

    def configured(self, config: MoMConfig) -> None:
        return None

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        optimizer = trainer.optimizers[0]
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
            if group["name"].startswith("router_"):
                group["lr"] = optimizer.defaults["lr"] * value * factor(scheduler.last_epoch)


def _routers(pl_module: LightningModule) -> Iterator[Router]:
    return (module for module in pl_module.modules() if isinstance(module, Router))


def _check_learns(name: str, config: MoMConfig) -> None:
    if not config.router_kind.learns:
        raise ValueError(f"name={name} requires a router that learns, got {config.router}")


SCALARS: dict[str, Scalar] = {
    "temperature": Temperature(),
    "gumbel_noise": Noise("gumbel"),
    "gaussian_noise": Noise("gaussian"),
    "prior_strength": PriorStrength(),
    "top_k": TopK(),
    "num_rounds": NumRounds(),
    "balance_coefficient": Option("balance_coefficient"),
    "z_loss_coefficient": Option("z_loss_coefficient"),
    "depth_coefficient": Option("depth_coefficient"),
    "router_lr_multiplier": RouterLearningRate(),
}
"""What a schedule can move. A scalar of your own is a :class:`Scalar` added here under its name."""
