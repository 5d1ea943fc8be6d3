"""Task ``upcycle``: convert a plain transformer to a Mixture-of-Modules, as a folder that ``init`` can name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import seed_everything

from mom.config import RunConfig, UpcycleConfig
from mom.console import announce, build_table, print_table
from mom.errors import UsageError
from mom.interop import UpcyclingPlan, load_model, upcycle
from mom.interop.export import write_folder
from mom.interop.upcycling import build_plan
from mom.runs.directory import MODEL_FOLDERS, RunDirectory

FOLDER = MODEL_FOLDERS["upcycle"]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Upcycle the plain transformer in ``init`` to the requested model, in ``<run>/model``.

    Returns:
        ``parameters``, ``parameters/plain``, and ``depth/graph``.

    Raises:
        UsageError: the weights cannot be used, or the shapes or layers do not fit.
    """
    assert isinstance(config.task, UpcycleConfig) and config.init is not None
    plain = load_model(config.init)
    if plain.config.num_stages:
        raise UsageError(
            f"init must be a plain transformer, got a model with {plain.config.num_stages} stage(s)"
        )
    model_config = config.model_config(plain.config.vocab_size)
    if not model_config.num_stages:
        raise UsageError("model.num_stages must be at least 1 for task=upcycle, got 0")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model_config, name, getattr(plain.config, name))
    plan = build_plan(config.task, model_config, plain.config.graph_depth)

    seed_everything(config.seed, workers=True, verbose=False)  # for the routers' weights
    model = upcycle(plain, model_config, plan)
    layers = (plan or UpcyclingPlan.consecutive(model_config)).describe()
    print_table(build_table(["", ""], layers, title=f"Layers of {config.init}", texts=2, show_header=False))
    if run.writes:
        write_folder(model, config.init, run.path / FOLDER)
        announce(f"Written to {run.path / FOLDER}; train it further with init={run.path / FOLDER}")
    return {
        "parameters": model.num_parameters(),
        "parameters/plain": plain.num_parameters(),
        "depth/graph": model_config.graph_depth,
    }
