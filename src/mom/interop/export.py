"""Export folders that transformers can load by itself: weights, tokenizer, the model's code, and a model card.

``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` needs only transformers and PyTorch. Once
``mom`` is imported, transformers uses its classes and does not need ``trust_remote_code``.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import mom.model
from mom import __version__
from mom.data.tokenizer import find_tokenizer, load_tokenizer
from mom.errors import UsageError, first_line
from mom.interop.weights import save_model
from mom.model import MoMForCausalLM, MoMForSequenceClassification
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


def check_push(repo: str) -> None:
    """Check that a folder can be pushed to a repository, before any work.

    Raises:
        UsageError: it is not a name on the Hub, or nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"push_to_hub must be user/name, got {repo} ({first_line(error)[:160]})") from error
    if "/" not in repo:
        raise UsageError(f"push_to_hub must be user/name, got {repo}")
    if get_token() is None:
        raise UsageError("push_to_hub requires a token of the Hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Push an exported folder to the Hub, in one commit; create the repository if there is none.

    Returns:
        The address of the repository.

    Raises:
        UsageError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Export of mom {__version__}")
    except Exception as error:  # no network, no permission, a full quota: each has its own type
        raise UsageError(
            f"cannot push to {repo}: {first_line(error)[:160]}; the export is in {folder}"
        ) from error
    return str(address)


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
