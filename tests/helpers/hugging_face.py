"""Models as transformers' users have them: in memory, saved and loaded, or from an exported folder's own code."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import dynamic_module_utils

from mom.interop.export import AUTO_MAP, model_code

PLACES = ["memory", "saved", "exported"]
MODULES = tempfile.TemporaryDirectory(prefix="transformers_modules_")
"""Where transformers copies the code of exported folders; one folder for a process, since Python imports it once."""


def placed(model: Any, place: str, folder: Path, monkeypatch: Any) -> Any:
    """Return the model as it is in a place, in evaluation mode."""
    if place == "memory":
        return model
    model.save_pretrained(folder)
    if place == "saved":
        return type(model).from_pretrained(folder).eval()
    for name, source in model_code().items():
        (folder / name).write_text(source, encoding="utf-8")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", MODULES.name)
    (reference,) = (name for name in AUTO_MAP.values() if name.endswith(f".{type(model).__name__}"))
    kind = dynamic_module_utils.get_class_from_dynamic_module(reference, str(folder))
    loaded = kind.from_pretrained(folder).eval()
    assert not isinstance(loaded, type(model)) and type(loaded).__module__.startswith("transformers_modules")
    return loaded


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients of all parameters that have one, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
