"""A folder that transformers loads by itself: weights, tokenizer, the model's own code, a model card.

``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` needs transformers and PyTorch only;
where ``mom`` is imported its classes are taken and ``trust_remote_code`` is not needed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mom.model
from mom.data.tokenizer import find_tokenizer, load_tokenizer
from mom.errors import RequestError, UsageError
from mom.model import MoMForCausalLM, MoMForSequenceClassification
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
"""Which file of an exported folder holds which class."""

# A folder is no package and registers nothing; the reference serves readers.
_NOT_EXPORTED = {"__init__.py", "reference.py"}
_IMPORT = re.compile(r"^(\s*)from mom\.model\.([\w.]+) import", re.MULTILINE)


def export_model(
    model: MoMForCausalLM | MoMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
) -> None:
    """Write the folder, whole or not at all; one that is there is replaced.

    Args:
        model: a language model or a classifier.
        tokenizer: its own.
        folder: where to.
        card: the text of ``README.md``.

    Raises:
        RequestError: ``run_dir``, if it cannot be written.
    """
    try:
        with atomic_folder(folder) as building:
            model.save_pretrained(str(building))
            tokenizer.save_pretrained(str(building))
            config = building / "config.json"
            fields = json.loads(config.read_text(encoding="utf-8")) | {"auto_map": AUTO_MAP}
            config.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            for name, source in model_code().items():
                (building / name).write_text(source, encoding="utf-8")
            (building / "README.md").write_text(card, encoding="utf-8")
    except OSError as reason:
        raise RequestError("run_dir", folder.parent, f"a folder that can be written: {reason}") from reason


def model_code() -> dict[str, str]:
    """Return the files of :mod:`mom.model` as modules that stand side by side, by file name.

    A package's file ``routers/gru.py`` becomes ``routers_gru.py``, its ``__init__.py`` ``routers.py``. Imports
    become relative, and operators that a file registers with PyTorch get a namespace of the module's own: the same
    folder may be loaded next to ``mom`` or another export, and a name can be taken once.
    """
    package = Path(mom.model.__file__).parent
    names = {path: path.relative_to(package).as_posix() for path in sorted(package.rglob("*.py"))}
    return {
        name.replace("/__init__", "").replace("/", "_"): _standing_alone(path.read_text(encoding="utf-8"))
        for path, name in names.items()
        if name not in _NOT_EXPORTED
    }


def _standing_alone(source: str) -> str:
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

A {kind} of {parameters:,} parameters, made with `mom`
(Mixture-of-Modules, Gong et al. 2024, arXiv 2407.06677).

{layout}

## Use

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("<this folder>")
model = {auto}.from_pretrained("<this folder>", trust_remote_code=True)
```

The code of the model lies in this folder. Where `mom` is installed, `from mom import MoMForCausalLM` makes
`trust_remote_code` unnecessary.

## Measured

{measured}
"""


def model_card(
    model: MoMForCausalLM | MoMForSequenceClassification,
    title: str,
    results: Mapping[str, Any] | None,
    origin: str,
) -> str:
    """The text of a model card.

    Args:
        model: what is exported.
        title: its name.
        results: the summary of the run that made the weights; None if there is none.
        origin: one sentence on where the numbers are from.
    """
    config = model.config
    is_classifier = isinstance(model, MoMForSequenceClassification)
    if config.num_stages:
        layout = (
            f"Bottom {config.num_bottom_blocks}, {config.num_stages} stage(s) of "
            f"{config.num_attention_modules} attention and {config.num_ffn_modules} feed-forward modules in "
            f"{config.num_rounds} rounds ({config.router} router, top {config.top_k}"
            f"{', anchor' if config.anchors else ''}), top {config.num_top_blocks}; "
        )
    else:
        layout = f"A plain transformer of {config.graph_depth} blocks; "
    layout += f"width {config.d_model}, {config.num_heads} heads, {config.max_positions} positions."
    return _CARD.format(
        pipeline="text-classification" if is_classifier else "text-generation",
        title=title,
        kind="classifier" if is_classifier else "language model",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layout=layout,
        auto="AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM",
        measured=_measured(results, origin),
    )


def _measured(results: Mapping[str, Any] | None, origin: str) -> str:
    numbers = {
        name: value
        for name, value in (results or {}).items()
        if isinstance(value, int | float) and name.startswith(("val/", "test/", "depth/", "routing/"))
    }
    if not numbers:
        return "Nothing was recorded with these weights."
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in numbers.items())
    return f"{origin}\n\n| metric | value |\n|---|---:|\n{rows}"


def write_folder(model: MoMForCausalLM, init: str, folder: Path) -> None:
    """Write weights, configuration and, where ``init`` has one, the tokenizer; whole or not at all.

    Raises:
        RequestError: ``run_dir``, if it cannot be written.
    """
    try:
        with atomic_folder(folder) as building:
            model.save_pretrained(building)
            try:
                load_tokenizer(find_tokenizer(init, None)).save_pretrained(str(building))
            except UsageError:
                log.info("no tokenizer beside %s; data.tokenizer has to name it", init)
    except OSError as reason:
        raise RequestError("run_dir", folder, f"a folder that can be written: {reason}") from reason
