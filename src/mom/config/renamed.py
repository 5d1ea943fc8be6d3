"""Options by other names: old ones of ours, and those that other libraries have."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "task.along": "task.cost_metric",
    "task.against": "task.reference_metric",
    "task.by": "task.group_by",
    "of": "reference_model",
    "task.of": "task.reference_model",
    "task.removal": "task.ablation",
    "task.removal_tokens": "task.ablation_tokens",
    "task.removal_tolerance": "task.ablation_tolerance",
    "task.harness_shots": "task.num_fewshot",
}
"""Old dotted names and their new ones. Add every option that you rename."""

ELSEWHERE: Mapping[str, str] = {
    "model.hidden_size": "model.d_model",
    "model.n_embd": "model.d_model",
    "model.num_attention_heads": "model.num_heads",
    "model.num_key_value_heads": "model.num_heads",
    "model.n_head": "model.num_heads",
    "model.intermediate_size": "model.d_ffn",
    "model.max_position_embeddings": "model.max_positions",
    "model.num_hidden_layers": "model.num_bottom_blocks, model.num_rounds, or model.num_top_blocks",
    "model.num_layers": "model.num_bottom_blocks, model.num_rounds, or model.num_top_blocks",
    "model.n_layer": "model.num_bottom_blocks, model.num_rounds, or model.num_top_blocks",
    "trainer.max_epochs": "trainer.max_steps, or task.epochs with task=finetune",
    "trainer.gpus": "trainer.devices with trainer=gpu",
}
"""Names in transformers and Lightning, and the options that do the same here."""

VALUES_ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("trainer.precision", "fp16"): "16-mixed",
    ("trainer.precision", "float16"): "16-mixed",
    ("trainer.precision", "half"): "16-mixed",
    ("trainer.precision", "bfloat16"): "bf16-mixed",
    ("trainer.precision", "fp32"): "32-true",
    ("trainer.precision", "float32"): "32-true",
}
"""Values by other names, whose closest spelling here means something else."""


def renamed(option: str) -> str | None:
    """Return the error message for an option's old name, or ``None`` if it is not an old name."""
    new = RENAMED.get(option.lstrip("+~"))
    return None if new is None else f"{option} was renamed to {new}"
