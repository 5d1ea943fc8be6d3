"""Lightning module for controls, measured by exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mom.data.controls.control import IGNORED
from mom.metrics.exact_match import ExactMatch, exact_matches
from mom.metrics.specialization import Specialization
from mom.model import MoMForCausalLM
from mom.training.language_modeling import LanguageModelingModule
from mom.training.module import step_outputs


class ControlModule(LanguageModelingModule):
    """Trains a :class:`MoMForCausalLM` on the answers of a control.

    Logs the losses of :class:`LanguageModelingModule`, and after each validation ``val/loss`` (over the answer tokens),
    ``val/exact_match``, and ``val/exact_match/<bucket>``. If the control knows the right modules of a routed pool, also
    the measures of :class:`Specialization` over the tokens that predict an answer, ``val/routing/<pool>/alignment`` and
    so on.

    Args:
        model_config: the fields of :class:`MoMConfig`.
        optimizer: the fields of ``OptimizerConfig``.
        buckets: names of the parts of the validation set.
        model: weights to start from; ``None`` initializes new ones.
    """

    def __init__(
        self,
        model_config: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        buckets: Sequence[str],
        model: MoMForCausalLM | None = None,
    ) -> None:
        super().__init__(model_config, optimizer, model)
        self._exact_match = ExactMatch(buckets)
        config = self.model.config
        rounds = config.num_stages * config.num_rounds
        pools = config.pools() if rounds else ()
        self._specialization = {layout.name: Specialization(rounds, layout.num_modules) for layout in pools}
        self._metrics = nn.ModuleList(self._specialization.values())  # moves to the device with the module

    def run_model(self, batch: Mapping[str, Any], output_logits: bool = False) -> Any:
        """Run a batch; a router that needs choices gets the right modules, and module 0 where none is right."""
        config = self.model.config
        choices = None
        if config.num_stages and config.router_kind.needs_choices:
            choices = {pool: right.clamp(min=0) for pool, right in batch.get("choices", {}).items()}
        return self.model(
            input_ids=batch["input_ids"],
            labels=batch["labels"],
            choices=choices,
            output_routing=True,
            output_logits=output_logits,
        )

    def validation_step(
        self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Measure one validation batch; return :func:`step_outputs` and ``logits`` [B, T, V]."""
        output = self.run_model(batch, output_logits=True)
        self._val_loss.update(output.lm_loss, self.count_targets(batch))
        self._exact_match.update(exact_matches(output.logits, batch["labels"]), batch["bucket"])
        self._add_choices(output.routing, batch)
        return {**step_outputs(output, batch), "logits": output.logits}

    def _add_choices(self, routing: Sequence[Any], batch: Mapping[str, Any]) -> None:
        """Count the choices of the tokens that predict an answer."""
        predicts = (batch["labels"] != IGNORED).roll(-1, dims=1)  # (B, T)
        predicts[:, -1] = False
        for pool, right in batch.get("choices", {}).items():
            if pool in self._specialization:
                choices = [getattr(record, pool) for record in routing]
                self._specialization[pool].update(choices, right, predicts)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        super().on_validation_epoch_start()
        self._exact_match.reset()
        for metric in self._specialization.values():
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the averages over the validation examples of all ranks."""
        metrics = {"val/loss": self.validation_loss, **self._exact_match.compute()}
        for pool, metric in self._specialization.items():
            if metric.update_called:
                metrics |= {f"val/routing/{pool}/{name}": value for name, value in metric.compute().items()}
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=1)
