"""The scalars that a schedule can change, by name, with methods to check and set each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.distributed.tensor import DTensor, distribute_tensor

from mom.callbacks.window import get_model_config
from mom.model import MoMConfig
from mom.model.layout import named_entries
from mom.model.routers.router import Router


class Scalar:
    """A scalar of the model or of the optimizer.

    Attributes:
        of_model: it belongs to the model, so it returns to its configured value after training.
        is_integer: it takes integer values only.
        starts_as_configured: a schedule from step 0 must start at the configured value.
        ends_as_configured: a schedule must end at the configured value, because the value affects the model's output
            and the trained model has its configured value.
    """

    of_model = True
    is_integer = False
    starts_as_configured = False
    ends_as_configured = False

    def check_value(self, argument: str, value: float) -> None:
        """Raise ``ValueError``, naming ``argument``, if the value is invalid for every model."""
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{argument} must be a number of at least 0, got {value}")

    def check_model(self, config: MoMConfig) -> None:
        """Raise ``ValueError``, starting with ``name=``, if a model does not have the scalar."""

    def configured(self, config: MoMConfig) -> float | None:
        """Return the value without a schedule; ``None``: the optimizer's option of the scalar's name."""
        raise NotImplementedError

    def most(self, config: MoMConfig) -> float:
        """Return the largest value."""
        return math.inf

    def rounded(self, value: float) -> float:
        """Return the nearest allowed value."""
        return value

    def options(self, config: MoMConfig, value: float) -> dict[str, Any]:
        """Return the model options with which an evaluated model computes as with this value.

        Checkpoints hold them. Scalars that are parameters or affect only training have none.
        """
        return {}

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        """Set the scalar."""

    def shift(self, pl_module: LightningModule, difference: float) -> None:
        """Shift parameters after an optimizer step that changed the scalar by ``difference``."""


class Option(Scalar):
    """An option that the losses read from the model's configuration at each step."""

    def __init__(self, name: str) -> None:
        self.name = name

    def configured(self, config: MoMConfig) -> float:
        return float(getattr(config, self.name))

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        setattr(get_model_config(pl_module), self.name, value)


class Noise(Scalar):
    """Scale of the noise that is added to ``logits / temperature`` to rank choices during training.

    The noise decides which modules run; their weights are computed without it. Evaluation has no noise. At scale 1,
    ``gumbel`` samples K choices by their probabilities without replacement (Kool et al. 2019, arXiv 1903.06059).
    ``gaussian`` is the noise of Shazeer et al. 2017 (arXiv 1701.06538, eq. 4) with a given instead of a learned scale.
    Checkpoints store PyTorch's random state, so resumed runs draw the same noise.

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
    """``router_prior_strength``: how strongly the routers' prior favors the order of a plain transformer.

    The prior is a learned bias. If it is strong, an upcycled model computes the same as the plain transformer; a
    schedule to 0 gradually lets the routers decide. After each optimizer step the prior is shifted by the change in
    strength; its learned part is kept.
    """

    starts_as_configured = True

    def check_model(self, config: MoMConfig) -> None:
        if config.router_prior in ("none", "hashed") or config.router_prior_strength == 0:
            raise ValueError(
                "name=prior_strength requires a learned router.router_prior (cyclic, ordered, or looped) with a "
                "strength above 0"
            )

    def configured(self, config: MoMConfig) -> float:
        return float(config.router_prior_strength)

    @torch.no_grad()
    def shift(self, pl_module: LightningModule, difference: float) -> None:
        config = get_model_config(pl_module)
        share = difference / config.router_prior_strength
        for router in _routers(pl_module):
            if router.prior is not None:
                # In float64, so that the parts of a linear schedule equal those of a division in float32.
                part = (router.initial_prior().double() * share).float().to(router.prior.device)
                if isinstance(router.prior, DTensor):
                    part = distribute_tensor(part, router.prior.device_mesh, router.prior.placements)
                router.prior.add_(part)


class Integer(Scalar):
    """An integer of at least 1."""

    is_integer = True
    ends_as_configured = True

    def check_value(self, argument: str, value: float) -> None:
        if not math.isfinite(value) or value < 1 or value != int(value):
            raise ValueError(f"{argument} must be an integer of at least 1, got {value:g}")

    def most(self, config: MoMConfig) -> float:
        most = self.configured(config)
        assert most is not None
        return most

    def rounded(self, value: float) -> int:
        return math.floor(value + 0.5)


class TopK(Integer):
    """K, the number of choices in a step, including SKIP. Shapes depend on it, so a compiled model is recompiled.

    If pools have different K, this is the smallest, and the others are lowered by the same amount.
    Validations during training use the current K too.
    """

    def configured(self, config: MoMConfig) -> float:
        return min(layout.num_selected() for layout in config.pools())

    def options(self, config: MoMConfig, value: float) -> dict[str, Any]:
        lower = int(self.configured(config) - value)
        if not lower:
            return {}
        top_k = {layout.name: layout.num_selected() - lower for layout in config.pools()}
        entries = named_entries(config.pool_specs)
        if len(set(top_k.values())) == 1 and not any("top_k" in entry for _, entry in entries):
            return {"top_k": next(iter(top_k.values())), "ffn_top_k": None}
        return {"pools": [{"name": name, **entry, "top_k": top_k[name]} for name, entry in entries]}

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        lower = int(self.configured(get_model_config(pl_module)) - value)
        for router in _routers(pl_module):
            router.set_top_k(router.layout.num_selected() - lower)


class NumRounds(Integer):
    """H, the rounds of a stage. A smaller H runs the first rounds; depth and cost are those of the shorter graph."""

    def check_model(self, config: MoMConfig) -> None:
        if config.settle_steps is not None:
            raise ValueError(
                "name=num_rounds cannot be combined with router.settle_steps: choices settle per round"
            )
        grouped = [layout.name for layout in config.pools() if layout.schedule == "grouped"]
        if grouped:
            raise ValueError(
                f"name=num_rounds cannot be combined with a grouped pool ({grouped[0]}), whose groups follow from the "
                "number of rounds"
            )

    def configured(self, config: MoMConfig) -> float:
        return config.num_rounds

    def options(self, config: MoMConfig, value: float) -> dict[str, Any]:
        return {"num_rounds": int(value)}

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        get_model_config(pl_module).num_rounds = int(value)
        for stage in cast(Any, pl_module.model).model.stages:
            stage.num_rounds = int(value)


class Temperature(Scalar):
    """``router.temperature``, the divisor of the routers' logits."""

    ends_as_configured = True

    def check_value(self, argument: str, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{argument} must be a number above 0, got {value}")

    def check_model(self, config: MoMConfig) -> None:
        _check_learns("temperature", config)

    def configured(self, config: MoMConfig) -> float:
        return config.temperature

    def options(self, config: MoMConfig, value: float) -> dict[str, Any]:
        return {"temperature": value}

    def set(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        for router in _routers(pl_module):
            router.set_temperature(None if value == router.config.temperature else value)


class RouterLearningRate(Scalar):
    """``optimizer.router_lr_multiplier``: learning rate of the routers relative to all other parameters."""

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
    "capacity_coefficient": Option("capacity_coefficient"),
    "router_lr_multiplier": RouterLearningRate(),
}
"""The scalars that a schedule can change. To add your own, add a :class:`Scalar` here under its name."""
