"""Describe a run in a line or two, for the titles of figures and pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mom.runs.directory import CHECKPOINTS, read_config


def describe_run(folder: str | Path) -> str:
    """Return the name, model, data, and seed of a run or phase; only the folder's name if nothing is recorded."""
    folder = Path(folder).absolute()
    config, of_run = read_config(folder), folder
    if "task" not in config and "phase" in config:  # a phase, whose data is that of the run
        of_run = folder.parent
    request = config if of_run == folder else read_config(of_run)
    name = of_run.name if of_run == folder else f"{of_run.name}, {config['phase']}"
    titles = [
        str(request["name"]) if request.get("name") else "",
        f"arm {request['arm']}" if request.get("arm") else "",
    ]
    if any(titles):
        name += f" ({', '.join(filter(None, titles))})"
    parts = [describe_model(config.get("model"), config.get("router")), describe_data(request.get("data"))]
    seed = f"seed {request['seed']}" if isinstance(request.get("seed"), int) else ""
    return ": ".join(filter(None, [name, ", ".join(filter(None, [*parts, seed]))]))


def run_of_weights(source: str | Path) -> Path:
    """Return the directory of the run or phase that wrote a checkpoint, or the folder of weights itself."""
    path = Path(source).absolute()
    return path.parent.parent if path.is_file() and path.parent.name == CHECKPOINTS else path


def describe_model(model: Any, router: Any = None) -> str:
    """Return a model's shape from the groups ``model`` and ``router`` of a request, or from a model's configuration."""
    if not isinstance(model, Mapping) or not isinstance(model.get("num_stages"), int):
        return ""
    blocks = [model.get(f"num_{place}_blocks", 0) for place in ("bottom", "top")]
    if not model["num_stages"]:
        return f"plain transformer of {sum(blocks)} blocks"
    pools = model.get("pools")
    if isinstance(pools, Mapping):
        modules = " + ".join(pools)
    else:
        modules = (
            f"{model.get('num_attention_modules')} attention + {model.get('num_ffn_modules')} FFN modules"
        )
    stages = f"{model['num_stages']} stages of " * (model["num_stages"] > 1)
    kind = router.get("router") if isinstance(router, Mapping) else model.get("router")
    shape = f"{stages}{modules}, {model.get('num_rounds')} rounds, K = {model.get('top_k')}"
    return f"{shape}, {kind} router" if kind else shape


def describe_data(data: Any) -> str:
    """Return the name of the data from the group ``data`` of a request."""
    if not isinstance(data, Mapping):
        return ""
    kind = data.get("kind")
    if kind == "language_modeling":
        return str(data.get("path") or data.get("corpus") or "")
    parts = [str(data[name]) for name in ("name", "task") if isinstance(data.get(name), str)]
    return "/".join([str(kind), *parts]) if kind else ""
