"""The evaluation harness (lm-eval) over a model in memory; needs ``pip install 'mixture-of-modules[harness]'``."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom.errors import RequestError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mom.model import MoMForCausalLM

# The line of a task file that names the task.
_TASK = re.compile(rb"^task:[ \t]*[\"']?([^\s\"'#]+)[\"']?[ \t]*(?:#.*)?\r?$", re.MULTILINE)


def adapter(model: MoMForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> Any:
    """The harness's own adapter for transformers models, over a model and tokenizer in memory.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: its own.
        batch_size: requests at once; the results do not depend on it.

    Raises:
        RequestError: ``harness``, if the extra is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as reason:
        raise RequestError(
            "harness", "lm-eval is not installed", f"pip install 'mixture-of-modules[harness]' ({reason})"
        ) from reason
    # It warns that a model in memory is not a name, and that we start it in one process.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Without its cache of logits: that takes two requests of the same tokens for one even where they are split
    # elsewhere into context and continuation (lm-eval 0.4.13), so the result would depend on the batch size.
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
    shots: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Measure a model on tasks of the harness.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: its own.
        tasks: names of tasks.
        batch_size: requests at once.
        path: a folder of task files to find the names in, in the place of the harness's own.
        shots: solved examples in front of each; None is as each task has it.
        limit: only so many examples of each task.
        seed: of the choice of solved examples.

    Returns:
        ``harness/<task>/<metric>``, with the standard error as ``<metric>_stderr`` where there is one; and
        ``harness/<task>/samples``.

    Raises:
        RequestError: ``harness``, an unknown task, or data that cannot be had.
    """
    language_model = adapter(model, tokenizer, batch_size)
    import lm_eval

    if path is not None and not Path(path).is_dir():
        raise RequestError("task.harness_path", path, "a folder of task files (.yaml)")
    manager = task_manager(tasks, path)
    for name in tasks:
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_tasks)
            hint = f"did you mean {close}? " if close else ""
            raise RequestError("harness", name, f"{hint}one of the {len(manager.all_tasks)} tasks of lm-eval")
    try:
        found = lm_eval.simple_evaluate(
            model=language_model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (ConnectionError, FileNotFoundError) as reason:  # a data set that is neither here nor in reach
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        raise RequestError(
            "harness", ", ".join(tasks), f"tasks whose data can be had ({lines[0][:160]})"
        ) from reason
    assert found is not None
    return flat(found)


def task_manager(names: Sequence[str], path: str | None = None) -> Any:
    """The harness's index of tasks, of no more files than these names need.

    The harness parses all of its 14,000 files to know their names. Where every name is that of a task, only the
    folders of their files are parsed, which a search of the text finds; for a group or tag, whose tasks may stand
    anywhere, and for a name that is not found, all are.

    Args:
        names: of tasks.
        path: a folder of task files, in the place of the harness's own.
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
    """The folders below ``root`` of the files that define these tasks; None if one of them is not found.

    No folder is inside another of them. Of several files with one name the first in order of paths is the harness's,
    and is taken here.
    """
    wanted = {name.encode(): name for name in names}
    found: dict[str, Path] = {}
    for file in sorted(root.glob("**/*.yaml"), key=lambda one: one.as_posix()):
        for name in _TASK.findall(file.read_bytes()):
            if name in wanted:
                found.setdefault(wanted[name], file.parent)
    if len(found) < len(wanted):
        return None
    folders = set(found.values())
    return sorted(one for one in folders if not folders & set(one.parents))


def flat(found: dict[str, Any]) -> dict[str, float]:
    """The harness's results under flat names; ``acc,none`` is ``acc``, other filters stay in the name."""
    results: dict[str, float] = {}
    for task, metrics in found["results"].items():
        for name, value in metrics.items():
            metric, _, kept = name.partition(",")
            if isinstance(value, int | float) and kept:
                suffix = "" if kept == "none" else f",{kept}"
                results[f"harness/{task}/{metric}{suffix}"] = float(value)
        if task in found.get("n-samples", {}):
            results[f"harness/{task}/samples"] = float(found["n-samples"][task]["effective"])
    return results
