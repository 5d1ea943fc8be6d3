"""Run the evaluation harness (lm-eval) on a model; requires ``pip install 'mixture-of-modules[harness]'``."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom.errors import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.model import MoMForCausalLM

# The line of a task file with the name of the task.
_TASK = re.compile(rb"^task:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)


def adapter(model: MoMForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Any:
    """Wrap a model and its tokenizer in the harness's adapter for transformers models.

    Args:
        model: the model, in evaluation mode and on its device.
        tokenizer: its tokenizer.
        batch_size: requests per batch; the results do not depend on it.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as reason:
        raise UsageError(
            f"harness requires lm-eval: pip install 'mixture-of-modules[harness]' ({first_line(reason)})"
        ) from reason
    # The harness warns that the model is not given by name and that it runs in one process.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The logits cache merges requests of equal tokens even if they are split differently into context and continuation
    # (lm-eval 0.4.13), so with it the results would depend on the batch size.
    return HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, logits_cache=False
    )


def run_harness(
    model: MoMForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[str],
    *,
    batch_size: int,
    path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluate a model on tasks of the harness.

    Args:
        model: the model, in evaluation mode and on its device.
        tokenizer: its tokenizer.
        tasks: names of tasks.
        batch_size: requests per batch.
        path: a folder with task files to use instead of the harness's own.
        num_fewshot: solved examples in each prompt; ``None`` is each task's default.
        limit: maximum number of examples per task.
        seed: random seed for choosing the solved examples.

    Returns:
        ``harness/<task>/<metric>``, its standard error as ``<metric>_stderr`` if there is one, and
        ``harness/<task>/samples``.

    Raises:
        UsageError: a task is unknown, or its data is unavailable.
    """
    language_model = adapter(model, tokenizer, batch_size)
    import lm_eval

    if path is not None and not Path(path).is_dir():
        raise UsageError(f"task.harness_path must be a folder of task files (.yaml), got {path}")
    manager = task_manager(tasks, path)
    for name in tasks:
        if name not in manager.all_tasks:
            known = manager.all_tasks
            raise UsageError(
                f"harness must name tasks of lm-eval ({len(known)} are known), got {name}{did_you_mean(name, known)}"
            )
    try:
        results = lm_eval.simple_evaluate(
            model=language_model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (ConnectionError, FileNotFoundError) as reason:  # a dataset that is neither cached nor reachable
        raise UsageError(
            f"cannot load the data of harness={','.join(tasks)}: {first_line(reason)[:160]}"
        ) from reason
    assert results is not None
    return flat(results)


def task_manager(names: Sequence[str], path: str | None = None) -> Any:
    """Build the harness's index of tasks, parsing only the files that these names require.

    By default the harness parses all of its 14,000 files. If every name is that of a task, a text search finds the
    folders to parse. A group or tag, whose tasks may be in any file, or an unknown name requires parsing all files.

    Args:
        names: names of tasks, groups, or tags.
        path: a folder with task files to use instead of the harness's own.
    """
    import lm_eval.tasks

    if path is not None:
        return lm_eval.tasks.TaskManager(include_path=path, include_defaults=False)
    folders = folders_of(names, Path(lm_eval.tasks.__file__).parent)
    if folders is not None:
        manager = lm_eval.tasks.TaskManager(include_path=list(folders), include_defaults=False)
        if set(names) <= set(manager.all_subtasks):
            return manager
    return lm_eval.tasks.TaskManager()


def folders_of(names: Sequence[str], root: Path) -> list[str | Path] | None:
    """Return the folders below ``root`` with the files that define these tasks; ``None`` if a task is not found.

    Folders inside other ones are omitted. If several files define a task, the first in path order counts, as in the
    harness.
    """
    wanted = {name.encode(): name for name in names}
    found: dict[str, Path] = {}
    for file in sorted(root.glob("**/*.yaml"), key=lambda path: path.as_posix()):
        for name in _TASK.findall(file.read_bytes()):
            if name in wanted:
                found.setdefault(wanted[name], file.parent)
    if len(found) < len(wanted):
        return None
    folders = set(found.values())
    return sorted(folder for folder in folders if not folders & set(folder.parents))


def flat(results: dict[str, Any]) -> dict[str, float]:
    """Flatten the harness's results; ``acc,none`` becomes ``acc``, other filters stay in the name."""
    flattened: dict[str, float] = {}
    for task, metrics in results["results"].items():
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if isinstance(value, int | float) and filtered:
                suffix = "" if filtered == "none" else f",{filtered}"
                flattened[f"harness/{task}/{metric}{suffix}"] = float(value)
        if task in results.get("n-samples", {}):
            flattened[f"harness/{task}/samples"] = float(results["n-samples"][task]["effective"])
    return flattened
