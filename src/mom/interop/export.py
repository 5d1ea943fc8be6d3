"""Export folders that transformers can load by itself: weights, tokenizer, the model's code, and a model card.

``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` needs only transformers and PyTorch. Once
``mom`` is imported, transformers uses its classes and does not need ``trust_remote_code``.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mom.model
from mom import __version__
from mom.data.tokenizer import find_tokenizer, load_tokenizer
from mom.errors import UsageError
from mom.interop.weights import save_model
from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification
from mom.runs.directory import run_dir_errors
from mom.runs.files import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration.MoMConfig",
    "AutoModel": "modeling.MoMModel",
    "AutoModelForCausalLM": "modeling.MoMForCausalLM",
    "AutoModelForSequenceClassification": "classification.MoMForSequenceClassification",
}
"""The classes of an exported folder and their files."""

# A folder is not a package and registers nothing; the reference is only for reading.
_NOT_EXPORTED = {"__init__.py", "reference.py"}
_IMPORT = re.compile(r"^(\s*)from mom\.model\.([\w.]+) import", re.MULTILINE)


def export_model(
    model: MoMForCausalLM | MoMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
) -> None:
    """Write a model with ``card`` as its ``README.md`` to a folder atomically, replacing an existing folder.

    Raises:
        UsageError: the run directory cannot be written.
    """
    with run_dir_errors(folder.parent), atomic_folder(folder) as building:
        save_model(model, building)
        _fitting(tokenizer, model).save_pretrained(str(building))
        config = building / "config.json"
        fields = json.loads(config.read_text(encoding="utf-8"))
        fields |= {"auto_map": AUTO_MAP, "mom_version": __version__}
        config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        for name, source in model_code().items():
            (building / name).write_text(source, encoding="utf-8")
        (building / "README.md").write_text(card, encoding="utf-8")


def _fitting(
    tokenizer: PreTrainedTokenizerBase, model: MoMForCausalLM | MoMForSequenceClassification
) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that cuts texts at the model's positions, and that pads, before prompts."""
    fitting = copy.deepcopy(tokenizer)
    fitting.model_max_length = min(tokenizer.model_max_length, model.config.max_positions)
    if fitting.pad_token is None:
        fitting.pad_token = fitting.eos_token
    if model.can_generate():
        fitting.padding_side = "left"
    return fitting


def model_code() -> dict[str, str]:
    """Return the files of :mod:`mom.model` as modules of a flat folder, by file name.

    A package's file ``routers/gru.py`` becomes ``routers_gru.py``, its ``__init__.py`` ``routers.py``. Imports
    become relative, and operators that a file registers with PyTorch get a namespace per module, because the folder
    may be loaded together with ``mom`` or another export, and a name can be registered only once.
    """
    package = Path(mom.model.__file__).parent
    names = {path: path.relative_to(package).as_posix() for path in sorted(package.rglob("*.py"))}
    return {
        name.replace("/__init__", "").replace("/", "_"): _standing_alone(path.read_text(encoding="utf-8"))
        for path, name in names.items()
        if name not in _NOT_EXPORTED
    }


def _standing_alone(source: str) -> str:
    """Rewrite a file of :mod:`mom.model` so that it works outside the package."""
    source = _IMPORT.sub(lambda found: f"{found[1]}from .{found[2].replace('.', '_')} import", source)
    own = re.sub(r'"mom::(\w+)"', r'f"{_NAMESPACE}::\1"', source)
    own = own.replace("torch.ops.mom.", "getattr(torch.ops, _NAMESPACE).")
    if own == source:
        return source
    # After the last import at the top level.
    last = list(re.finditer(r"^(?:from|import) (?:[^\n(]+|[^(\n]*\([^)]*\))\n", own, re.MULTILINE))[-1].end()
    return own[:last] + '\n_NAMESPACE = "mom_" + __name__.replace(".", "_")\n' + own[last:]


_CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags:
- mixture-of-modules
- mom
---

# {title}

A {kind} with {parameters:,} parameters, trained with `mom`
(Mixture-of-Modules, Gong et al. 2024, arXiv 2407.06677).

{layout}

## Usage

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("<this folder>")
model = {auto}.from_pretrained("<this folder>", trust_remote_code=True)
```

This folder contains the model's code. If `mom` is installed, `from mom import MoMForCausalLM` makes
`trust_remote_code` unnecessary.

## Results

{measured}
"""


def model_card(
    model: MoMForCausalLM | MoMForSequenceClassification,
    title: str,
    results: Mapping[str, Any] | None,
    origin: str,
) -> str:
    """Return the text of a model card.

    Args:
        model: the exported model.
        title: heading of the card.
        results: the summary of the run that trained the weights, if any.
        origin: a sentence that says where the results come from.
    """
    config = model.config
    is_classifier = isinstance(model, MoMForSequenceClassification)
    return _CARD.format(
        pipeline="text-classification" if is_classifier else "text-generation",
        title=title,
        kind="classifier" if is_classifier else "language model",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layout=f"{_layout(config)}; width {config.d_model}, {config.num_heads} heads, "
        f"{config.max_positions} positions.",
        auto="AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM",
        measured=_measured(results, origin),
    )


def _layout(config: MoMConfig) -> str:
    """Describe a model's blocks and pools in a phrase."""
    if not config.num_stages:
        return f"A plain transformer with {config.graph_depth} blocks"
    pools = config.pools()
    modules = " and ".join(f"{pool.num_modules} {pool.label}" for pool in pools)
    top_k = " and ".join(map(str, dict.fromkeys(pool.top_k for pool in pools)))
    return (
        f"{config.num_bottom_blocks} bottom block(s), {config.num_stages} stage(s) of {modules} modules assembled in "
        f"{config.num_rounds} rounds ({config.router} router, top {top_k}){' with an anchor' * config.anchors}, "
        f"{config.num_top_blocks} top block(s)"
    )


def _measured(results: Mapping[str, Any] | None, origin: str) -> str:
    """Return the table of results as Markdown."""
    numbers = {
        name: value
        for name, value in (results or {}).items()
        if isinstance(value, int | float) and name.startswith(("val/", "test/", "depth/", "routing/"))
    }
    if not numbers:
        return "No results were recorded with these weights."
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in numbers.items())
    return f"{origin}\n\n| metric | value |\n|---|---:|\n{rows}"


def write_folder(model: MoMForCausalLM, init: str, folder: Path) -> None:
    """Write weights, configuration, and the tokenizer found with ``init``, if any, to a folder atomically.

    Raises:
        UsageError: the run directory cannot be written.
    """
    with run_dir_errors(folder.parent), atomic_folder(folder) as building:
        save_model(model, building)
        try:
            _fitting(load_tokenizer(find_tokenizer(init, None)), model).save_pretrained(str(building))
        except UsageError:
            log.info("No tokenizer found with %s; set data.tokenizer when you use this model", init)
