"""Draw a run's training and the routing of its validation, to files and to loggers that accept images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from mom.callbacks.progress import StepProgressBar
from mom.callbacks.routing_statistics import RoutingStatistics
from mom.callbacks.window import get_model_config, pool_names, sum_over_ranks
from mom.config.checks import in_range
from mom.data.controls.control import IGNORED
from mom.errors import first_line
from mom.metrics.depth import (
    DEPTHS,
    LOSS_EDGES,
    Binned,
    bin_depths,
    binned_by_frequency,
    depth_bins,
    moments_by,
    token_depths,
)
from mom.metrics.names import pool_label
from mom.metrics.routing import choices_by_rule, pool_sums
from mom.metrics.sums import Sums, Totals, add, collect, prefixed
from mom.runs.describe import describe_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

Draw = Callable[[], "Figure | None"]

FOLDER = "figures"
MAX_LOGITS = 2**26
"""Maximum number of logits to compute for depth by loss; of a larger batch, only the first sequences are used."""


class RoutingFigures(Callback):
    """Draws training and a validation's routing when training ends, and optionally every ``every_n_steps`` steps.

    Writes ``figures/<name>.png`` and ``.svg`` in the run directory, replacing earlier ones: ``loss`` and ``training``,
    from ``metrics.csv`` (:mod:`mom.plots.training`), and figures of routing, which it also logs as ``figures/<name>``
    to TensorBoard and wandb: ``module_use``, ``module_flow``, ``depth_distribution``, ``depth_by_frequency``,
    ``depth_by_loss``, ``use_over_time`` (with :class:`RoutingStatistics` only), and ``<pool>_by_rule`` (for controls
    whose right modules are known). :mod:`mom.plots.routing`, :mod:`mom.plots.depth`, and :mod:`mom.plots.rules`
    describe them. Tokens of all ranks count, padding does not. A plain transformer has no routing.

    Validation of text keeps no logits, so for depth by loss, with language models only, the first ``loss_batches``
    batches go through the model once more; that of a control has them.

    Args:
        every_n_steps: also draw after the first validation in every ``every_n_steps`` optimizer steps; ``None`` draws
            only at the end.
        loss_batches: validation batches for depth by loss, on each rank; 0 omits that figure.
        dpi: resolution of the files.
    """

    def __init__(self, every_n_steps: int | None = None, loss_batches: int = 4, dpi: int = 120) -> None:
        in_range("callbacks.figures.every_n_steps", every_n_steps, ge=1)
        in_range("callbacks.figures.loss_batches", loss_batches, ge=0)
        in_range("callbacks.figures.dpi", dpi, ge=20)
        self.every_n_steps, self.loss_batches, self.dpi = every_n_steps, loss_batches, dpi
        self._sums: Sums | None = None
        self._drawn_at = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the sums of the previous validation."""
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
            is_used = batch_idx < self.loss_batches and dataloader_idx == 0
            measured |= self._measure_by_loss(trainer, pl_module, outputs, batch if is_used else None)
        self._sums = add(self._sums, measured)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw if an interval has passed."""
        step, every = trainer.global_step, self.every_n_steps
        if every is not None and step // every > self._drawn_at // every and trainer.state.fn == "fit":
            self._draw(trainer, pl_module)
            self._draw_training(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation, and the curves over training."""
        if self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module)
        self._draw_training(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the curves of a training that was interrupted or failed, which may show why."""
        try:
            self._draw_training(trainer)
        except Exception as error:  # must not hide the exception
            log.warning("cannot draw the curves over training: %s", first_line(error))

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last figures."""
        return {"drawn_at": self._drawn_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the last figures."""
        self._drawn_at = state_dict["drawn_at"]

    def _measure(self, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any) -> Sums:
        config, mask, pools = get_model_config(pl_module), outputs["attention_mask"], pool_names(pl_module)
        sums: Sums = {}
        for pool in pools:
            sums |= prefixed(pool, pool_sums([getattr(record, pool) for record in outputs["routing"]], mask))
        depths = _depths(pl_module, outputs["routing"])
        bins = depth_bins(depths, mask, **_span(pl_module))
        by_type = moments_by(batch["input_ids"], depths, mask, number=config.vocab_size)
        for pool, right in batch.get("choices", {}).items():
            if pool in pools:
                records = [getattr(record, pool) for record in outputs["routing"]]
                answers = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1))  # (B, T)
                sums[f"{pool}/by_rule"] = choices_by_rule(records, right, mask & answers)
        return sums | prefixed("depth", bins) | prefixed("type", by_type)

    def _measure_by_loss(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Any | None
    ) -> Sums:
        """Sum up depths by the loss of the next token, in another forward pass if there are no logits.

        Zeros without a batch.
        """
        number = len(LOSS_EDGES) - 1
        if batch is None:
            nothing = torch.zeros(1, 1, device=pl_module.device)
            depths = dict.fromkeys(DEPTHS, nothing)
            return prefixed("loss", moments_by(nothing.long(), depths, nothing.bool(), number=number))
        # Every rank has to run the model equally often, because a sharded model runs on all of them together.
        vocab_size = get_model_config(pl_module).vocab_size
        rows = slice(max(1, MAX_LOGITS // (batch["input_ids"].shape[1] * vocab_size)))
        part, routing = apply_to_collection(
            (dict(batch), outputs["routing"]), Tensor, lambda values: values[rows]
        )
        if "logits" in outputs:
            logits = outputs["logits"][rows]
        else:
            with trainer.precision_plugin.forward_context():
                output = cast(Any, pl_module).run_model({**part, "labels": None}, output_logits=True)
            logits, routing = output.logits, output.routing
        labels = part["labels"][:, 1:]  # (B, T-1)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels, reduction="none"
        )  # (B, T-1); 0 where the label is -100, which the mask excludes
        loss_bin = torch.bucketize(loss, torch.tensor(LOSS_EDGES[1:-1], device=loss.device), right=True)
        depths = {name: depth[:, :-1] for name, depth in _depths(pl_module, routing).items()}
        return prefixed("loss", moments_by(loss_bin, depths, labels != -100, number=number))

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw all figures of the last validation; every rank has to call it."""
        if self._sums is None:
            return
        totals = collect(self._sums, partial(sum_over_ranks, trainer))
        self._drawn_at = trainer.global_step
        if not trainer.is_global_zero:
            return
        from mom.plots.style import write_figure

        folder = Path(trainer.default_root_dir) / FOLDER
        run = describe_run(trainer.default_root_dir)
        drawings = _drawings(pl_module, totals, self._history(trainer), run)
        for name, draw in _shown(trainer, list(drawings.items())):
            figure = draw()
            if figure is not None:
                _log_figure(
                    trainer, f"{FOLDER}/{name}", write_figure(figure, folder / f"{name}.png", self.dpi)
                )

    def _draw_training(self, trainer: Trainer) -> None:
        """Draw what ``metrics.csv`` holds so far; wandb and TensorBoard draw their own curves."""
        if not trainer.is_global_zero:
            return
        from mom.plots.training import draw_training

        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()  # Lightning writes rows in batches
        draw_training(trainer.default_root_dir, self.dpi)

    def _history(self, trainer: Trainer) -> Mapping[str, Tensor]:
        """Return the use of the pools so far, empty without :class:`RoutingStatistics`."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return next((other.history for other in callbacks if isinstance(other, RoutingStatistics)), {})


def _drawings(
    pl_module: LightningModule, totals: Totals, history: Mapping[str, Tensor], run: str
) -> dict[str, Draw]:
    """Return the functions that draw the figures for which there is data."""
    from mom.plots import depth as depth_figures
    from mom.plots import routing as figures
    from mom.plots import rules as rule_figures

    config, pools = get_model_config(pl_module), pool_names(pl_module)
    options: Any = {"run": run, "num_stages": config.num_stages}
    depth_options: Any = {"run": run, "graph_depth": config.graph_depth}

    def by_pool(arrays: Mapping[str, Tensor], suffix: str = "") -> dict[str, Any]:
        return {pool_label(pool): arrays[f"{pool}{suffix}"].numpy() for pool in pools}

    distributions = {
        name: (bin_depths(name, **_span(pl_module)).numpy(), totals[f"depth/{name}"].numpy())
        for name in DEPTHS
    }
    by_frequency = {name: binned_by_frequency(*_moments(totals, "type", name)) for name in DEPTHS}
    drawings: dict[str, Draw] = {
        "module_use": lambda: figures.module_use(by_pool(totals, "/use"), **options),
        "module_flow": lambda: figures.module_flow(by_pool(totals, "/flow"), **options),
        "depth_distribution": lambda: depth_figures.depth_distribution(distributions, **depth_options),
        "depth_by_frequency": lambda: depth_figures.depth_by_frequency(by_frequency, **depth_options),
    }
    if len(totals[f"{pools[0]}/flow"]) == 0:  # a single round
        del drawings["module_flow"]
    for pool in pools:
        if f"{pool}/by_rule" in totals:
            counts = totals[f"{pool}/by_rule"].numpy()
            drawings[f"{pool}_by_rule"] = partial(
                rule_figures.modules_by_rule, counts, pool=pool_label(pool), **options
            )
    if "loss/tokens" in totals and totals["loss/tokens"].sum() > 0:
        by_loss = {name: Binned(LOSS_EDGES, *_moments(totals, "loss", name)) for name in DEPTHS}
        drawings["depth_by_loss"] = lambda: depth_figures.depth_by_loss(by_loss, **depth_options)
    if len(history.get("steps", ())) > 1:
        steps = history["steps"].numpy()
        drawings["use_over_time"] = lambda: figures.use_over_time(steps, by_pool(history), run=run)
    return drawings


def _moments(totals: Totals, group: str, name: str) -> tuple[Any, Any, Any]:
    """Return tokens, sum of depths, and sum of squared depths."""
    tokens, total, squares = (
        totals[f"{group}/{part}"].numpy() for part in ("tokens", f"{name}/total", f"{name}/squares")
    )
    return tokens, total, squares


def _depths(pl_module: LightningModule, routing: Any) -> dict[str, Tensor]:
    depths = token_depths(routing, fixed_depth=get_model_config(pl_module).fixed_depth)
    return {name: depths[name] for name in DEPTHS}


def _span(pl_module: LightningModule) -> dict[str, int]:
    """Return the keyword arguments of :func:`depth_bins` and :func:`bin_depths`."""
    config = get_model_config(pl_module)
    sizes = {"fixed_depth": config.fixed_depth, "graph_depth": config.graph_depth}
    return sizes | {"num_pools": len(config.pools())}


def _shown(trainer: Trainer, drawings: Sequence[tuple[str, Draw]]) -> Iterable[tuple[str, Draw]]:
    """Yield drawings, with their progress if the trainer shows its own."""
    bar = trainer.progress_bar_callback
    return bar.during(drawings, "drawing figures") if isinstance(bar, StepProgressBar) else drawings


def _log_figure(trainer: Trainer, name: str, path: Path) -> None:
    """Log a figure's file to every logger that accepts images."""
    from matplotlib.image import imread

    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, imread(path), trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
