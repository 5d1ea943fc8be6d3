"""Log continuations of prompts during training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from mom.callbacks.window import get_model_config
from mom.config.checks import in_range
from mom.errors import UsageError
from mom.runs.files import write_text_atomic

FILE = "samples.jsonl"
COLUMNS = ("step", "prompt", "continuation")


class GeneratedSamples(Callback):
    """Continues ``prompts`` after each validation during training; without prompts it does nothing.

    Decoding is greedy, because sampling would change the random numbers of training. All samples so far are in
    ``samples.jsonl`` in the run directory and in wandb's table ``samples``, the latest in TensorBoard's text
    ``samples``. It applies to language models only.

    Args:
        prompts: texts to continue.
        max_new_tokens: maximum number of tokens to add to each.
    """

    def __init__(self, prompts: list[str] | None = None, max_new_tokens: int = 40) -> None:
        in_range("callbacks.samples.max_new_tokens", max_new_tokens, ge=1)
        self.prompts, self.max_new_tokens = list(prompts or ()), max_new_tokens
        self._rows: list[tuple[int, str, str]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise :class:`~mom.errors.UsageError` if a prompt leaves no room for its continuation."""
        if not self._applies(pl_module):
            return
        positions = get_model_config(pl_module).max_positions
        for prompt in self.prompts:
            length = self._ids(trainer, prompt).shape[1]
            if length + self.max_new_tokens > positions:
                raise UsageError(
                    f"callbacks.samples.prompts must fit the model's {positions} positions with {self.max_new_tokens} "
                    f"new tokens, got {length} tokens in {prompt[:20]!r}"
                )

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue every prompt, on every rank, because a sharded model runs on all of them together."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._applies(pl_module):
            return
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        for prompt in self.prompts:
            ids = self._ids(trainer, prompt).to(pl_module.device)
            with trainer.precision_plugin.forward_context():
                output = pl_module.model.generate(  # type: ignore[operator, union-attr]
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.eos_token_id,
                )
            text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            self._rows.append((trainer.global_step, prompt, text))
        if trainer.is_global_zero:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the samples so far."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the samples so far."""
        self._rows = [(int(step), str(prompt), str(text)) for step, prompt, text in state_dict["rows"]]

    def _applies(self, pl_module: LightningModule) -> bool:
        return bool(self.prompts) and hasattr(pl_module.model, "lm_head")

    def _ids(self, trainer: Trainer, prompt: str) -> torch.Tensor:
        """Return the prompt's token IDs, [1, T]; an empty prompt becomes the end-of-text token."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        return torch.tensor([ids])

    def _write(self, trainer: Trainer) -> None:
        lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in self._rows]
        write_text_atomic(Path(trainer.default_root_dir) / FILE, "\n".join(lines) + "\n")
        latest = self._rows[-len(self.prompts) :]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = "\n\n".join(f"**{prompt}** {continuation}" for _, prompt, continuation in latest)
                logger.experiment.add_text("samples", text, trainer.global_step)
            elif isinstance(logger, WandbLogger):
                rows = [list(row) for row in self._rows]
                logger.log_table("samples", columns=list(COLUMNS), data=rows, step=trainer.global_step)
