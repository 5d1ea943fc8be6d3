"""Pictures of the routing of a run's validation, in files and in the loggers that take images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from mom.callbacks.routing_statistics import RoutingStatistics
from mom.callbacks.window import config_of
from mom.config.checks import in_range
from mom.metrics.depth import (
    LOSS_EDGES,
    Binned,
    bin_depths,
    binned_by_frequency,
    depth_bins,
    moments_by,
    token_depths,
)
from mom.metrics.routing import POOLS, pool_sums
from mom.metrics.sums import Sums, Totals, add, collect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
MOST_LOGITS = 2**26
"""Logits that stand in memory at a time for depth by loss; a batch of more gives its first sequences."""


class RoutingFigures(Callback):
    """Draws a validation's routing when training ends, and every ``every_n_steps`` steps if asked for.

    ``figures/<name>.png`` in the run's folder, the latest of each, and ``figures/<name>`` in TensorBoard and
    wandb: ``module_use``, ``module_flow``, ``depth_distribution``, ``depth_by_frequency``, ``depth_by_loss`` and
    ``use_over_time`` (where ``callbacks.routing_statistics`` is). What each shows is told in
    :mod:`mom.plots.routing`. Tokens of all ranks count, padding never. A plain transformer has no routing and no
    figures.

    For depth by loss, of a language model only, the first ``loss_batches`` batches go through the model once more,
    as validation needs no loss of single tokens; of large ones only the first sequences.

    Args:
        every_n_steps: draw after the first validation in every so many optimizer steps too; ``None``: at the end.
        loss_batches: batches of the validation for depth by loss, on each rank; 0 leaves that figure out.
        dpi: pixels per inch of the files.
    """

    def __init__(self, every_n_steps: int | None = None, loss_batches: int = 4, dpi: int = 120) -> None:
        in_range("callbacks.figures.every_n_steps", every_n_steps, ge=1)
        in_range("callbacks.figures.loss_batches", loss_batches, ge=0)
        in_range("callbacks.figures.dpi", dpi, ge=20)
        self.every_n_steps, self.loss_batches, self.dpi = every_n_steps, loss_batches, dpi
        self._sums: Sums | None = None
        self._drawn_at = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the validation before."""
        self._sums = None

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add this batch."""
        if not outputs["routing"] or trainer.sanity_checking:
            return
        measured = self._measure(pl_module, outputs, batch)
        if hasattr(pl_module.model, "lm_head") and self.loss_batches:
            within = batch_idx < self.loss_batches and dataloader_idx == 0
            measured |= self._by_loss(trainer, pl_module, batch if within else None)
        self._sums = add(self._sums, measured)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, if an interval is over."""
        step = trainer.global_step
        every = self.every_n_steps
        if every is not None and step // every > self._drawn_at // every and trainer.state.fn == "fit":
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation."""
        if self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """When the last figures were drawn."""
        return {"drawn_at": self._drawn_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._drawn_at = state_dict["drawn_at"]

    def _measure(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> Sums:
        config, mask = config_of(pl_module), outputs["attention_mask"]
        sums: Sums = {}
        for pool in POOLS:
            choices = [getattr(record, pool) for record in outputs["routing"]]
            measured = pool_sums(choices, mask, num_modules=getattr(config, f"num_{pool}_modules"))
            sums |= {f"{pool}/{name}": value for name, value in measured.items()}
        depths = _depths(pl_module, outputs["routing"])
        bins = depth_bins(depths, mask, fixed_depth=config.fixed_depth, graph_depth=config.graph_depth)
        by_type = moments_by(batch["input_ids"], depths, mask, number=config.vocab_size)
        sums |= {f"depth/{name}": value for name, value in bins.items()}
        return sums | {f"type/{name}": value for name, value in by_type.items()}

    def _by_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any | None) -> Sums:
        """Depth by the loss of the next token, of a batch that goes through the model again; zeros of none."""
        number = len(LOSS_EDGES) - 1
        if batch is None:
            nothing = torch.zeros(1, 1, device=pl_module.device)
            depths = dict.fromkeys(("effective", "weighted"), nothing)
            sums = moments_by(nothing.long(), depths, nothing.bool(), number=number)
            return {f"loss/{name}": value for name, value in sums.items()}
        # Every rank has to run the model as often, whatever the size of its batch: a sharded one needs them all.
        rows = slice(max(1, MOST_LOGITS // (batch["input_ids"].shape[1] * config_of(pl_module).vocab_size)))
        mask = batch.get("attention_mask")
        with trainer.precision_plugin.forward_context():
            output = cast(Any, pl_module.model)(
                input_ids=batch["input_ids"][rows],
                attention_mask=None if mask is None else mask[rows],
                output_routing=True,
                use_cache=False,
            )
        wanted = batch["labels"][rows, 1:]  # (B, T-1)
        loss = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].float().transpose(1, 2), wanted, reduction="none"
        )  # (B, T-1); 0 where the label is -100, which the mask leaves out
        place = torch.bucketize(loss, torch.tensor(LOSS_EDGES[1:-1], device=loss.device), right=True)
        depths = {name: one[:, :-1] for name, one in _depths(pl_module, output.routing).items()}
        sums = moments_by(place, depths, wanted != -100, number=number)
        return {f"loss/{name}": value for name, value in sums.items()}

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All figures of the last validation; every rank has to call it."""
        if self._sums is None:
            return
        strategy = trainer.strategy
        reduce = (lambda tensor: strategy.reduce(tensor, reduce_op="sum")) if trainer.world_size > 1 else None
        totals = collect(self._sums, reduce)
        self._drawn_at = trainer.global_step
        if not trainer.is_global_zero:
            return
        from mom.plots.style import write_figure

        folder = Path(trainer.default_root_dir) / FOLDER
        for name, draw in _drawings(pl_module, totals, self._history(trainer), _run_name(trainer)).items():
            _show(trainer, f"{FOLDER}/{name}", write_figure(draw(), folder / f"{name}.png", self.dpi))

    def _history(self, trainer: Trainer) -> Mapping[str, Tensor]:
        """Use of the pools over the training so far, if it is kept."""
        kept = [one for one in trainer.callbacks if isinstance(one, RoutingStatistics)]  # type: ignore[attr-defined]
        return kept[0].history if kept else {}


def _drawings(
    pl_module: LightningModule, totals: Totals, history: Mapping[str, Tensor], run: str
) -> dict[str, Callable[[], Figure]]:
    """What to call for each figure there is something to show in."""
    from mom.plots import depth as depth_figures
    from mom.plots import routing as figures

    config = config_of(pl_module)
    stages = config.num_stages
    span = {"fixed_depth": config.fixed_depth, "graph_depth": config.graph_depth}
    use, flow = ([totals[f"{pool}/{name}"].numpy() for pool in POOLS] for name in ("use", "flow"))
    spread = {
        name: (bin_depths(name, **span).numpy(), totals[f"depth/{name}"].numpy())
        for name in ("effective", "weighted")
    }
    drawings: dict[str, Callable[[], Figure]] = {
        "module_use": lambda: figures.module_use(*use, run=run, num_stages=stages),
        "module_flow": lambda: figures.module_flow(*flow, run=run, num_stages=stages),
        "depth_distribution": lambda: depth_figures.depth_distribution(
            spread, run=run, graph_depth=config.graph_depth
        ),
        "depth_by_frequency": lambda: depth_figures.depth_by_frequency(
            {name: binned_by_frequency(*_moments(totals, "type", name)) for name in spread},
            run=run,
        ),
    }
    if len(flow[0]) == 0:  # one round: nothing flows
        del drawings["module_flow"]
    if "loss/tokens" in totals and totals["loss/tokens"].sum() > 0:
        drawings["depth_by_loss"] = lambda: depth_figures.depth_by_loss(
            {name: Binned(LOSS_EDGES, *_moments(totals, "loss", name)) for name in spread},
            run=run,
        )
    if len(history.get("steps", ())) > 1:
        steps, attention, ffn = (history[name].numpy() for name in ("steps", *POOLS))
        drawings["use_over_time"] = lambda: figures.use_over_time(steps, attention, ffn, run=run)
    return drawings


def _moments(totals: Totals, group: str, name: str) -> tuple[Any, Any, Any]:
    """Tokens, sum of depths, sum of squared depths."""
    tokens, total, squares = (
        totals[f"{group}/{one}"].numpy() for one in ("tokens", f"{name}/total", f"{name}/squares")
    )
    return tokens, total, squares


def _depths(pl_module: LightningModule, routing: Any) -> dict[str, Tensor]:
    config = config_of(pl_module)
    return token_depths(
        routing,
        num_attention_modules=config.num_attention_modules,
        num_ffn_modules=config.num_ffn_modules,
        fixed_depth=config.fixed_depth,
    )


def _run_name(trainer: Trainer) -> str:
    return Path(trainer.default_root_dir).name


def _show(trainer: Trainer, name: str, path: Path) -> None:
    """Give a figure's file to every logger that takes images."""
    from matplotlib.image import imread

    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, imread(path), trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
