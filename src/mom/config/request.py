"""A request: all groups and top-level options, typed and checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mom.config.checks import conform, in_range, unknown_option
from mom.config.cluster import ClusterConfig
from mom.config.data import data_section
from mom.config.launcher import LauncherConfig, launcher_section
from mom.config.machine import check_machine
from mom.config.model import check_model, check_options, invalid_model
from mom.config.nodes import NodeConfig
from mom.config.optimizer import MuonConfig, OptimizerSection, optimizer_section
from mom.config.plugins import OPTION, load_plugins
from mom.config.search import SearchConfig
from mom.config.section import TaskConfig
from mom.config.tasks import TASKS, task_section
from mom.config.text_data import DataConfig, DataSection
from mom.config.training import TrainerConfig
from mom.errors import UsageError, as_written, either, first_line
from mom.runs.directory import choose_run_dir, latest_checkpoint

if TYPE_CHECKING:
    from mom.model import MoMConfig

_GROUPS = (
    "task",
    "model",
    "router",
    "data",
    "optimizer",
    "trainer",
    "callbacks",
    "logger",
    "launcher",
    "search",
    "cluster",
)
_TOP_LEVEL: Mapping[str, Any] = {
    OPTION: list[str],
    "seed": int,
    "init": str | None,
    "ckpt": str | None,
    "resume": Literal["auto"] | None,
    "arm": str | None,
    "debug": bool,
    "run_dir": str | None,
    "name": str | None,
    "tags": list[str],
    "notes": str | None,
}


@dataclass(frozen=True)
class RunConfig:
    """A typed and checked request, created by :func:`bind`.

    Args:
        task: task to run.
        model: options of the ``model`` group, which are fields of ``MoMConfig``.
        router: options of the ``router`` group, which are fields of ``MoMConfig``.
        data: text, tokens, and batches.
        optimizer: the optimizer and its schedule.
        trainer: Lightning's Trainer.
        callbacks: callbacks by name.
        logger: loggers by name.
        launcher: how the jobs of a sweep are started.
        search: how the trials of a search are sampled; None if this is not a search.
        cluster: the devices to plan for; None if ``task=cost`` makes no plan.
        plugins: modules to import, which register routers and module kinds.
        seed: random seed.
        init: weights to start from: a checkpoint, an exported folder, or a Hub id.
        ckpt: checkpoint to resume from, including the optimizer state.
        resume: ``auto`` resumes from the last checkpoint in ``run_dir`` if there is one.
        arm: name of the run in tables, which the ``arm`` group sets.
        debug: also print the traceback of an invalid request.
        run_dir: directory of this run.
        name: a name for tables and loggers, and in the default ``run_dir``.
        tags: words to find the run by, also for loggers.
        notes: a text about the run, also for loggers.
    """

    task: TaskConfig
    model: dict[str, Any]
    router: dict[str, Any]
    data: DataSection
    optimizer: OptimizerSection
    trainer: TrainerConfig
    callbacks: dict[str, NodeConfig]
    logger: dict[str, NodeConfig]
    launcher: LauncherConfig
    search: SearchConfig | None
    cluster: ClusterConfig | None
    plugins: list[str]
    seed: int
    init: str | None
    ckpt: str | None
    resume: Literal["auto"] | None
    arm: str | None
    debug: bool
    run_dir: str
    name: str | None
    tags: list[str]
    notes: str | None

    def model_config(self, vocab_size: int) -> MoMConfig:
        """Build the model's configuration from the ``model`` and ``router`` options.

        Args:
            vocab_size: the tokenizer's vocabulary size, used if ``model.vocab_size`` is null.

        Raises:
            UsageError: for an invalid option.
        """
        from mom.model import MoMConfig

        given = self.model.get("vocab_size")
        if given is not None and given < vocab_size:
            raise UsageError(
                f"model.vocab_size must be null or at least {vocab_size}, the vocabulary size of the tokenizer, "
                f"got {given}"
            )
        fields = {**self.model, **self.router, "vocab_size": vocab_size if given is None else given}
        try:
            return MoMConfig(**fields)
        except ValueError as reason:
            raise invalid_model(reason) from reason

    def check_buildable(self, *, devices: bool = True) -> None:
        """Check the callbacks, the loggers, and the devices, which requires importing PyTorch and Lightning.

        Reads no data and builds no model.

        Args:
            devices: whether to check that this machine has the trainer's devices and is fit for the request.

        Raises:
            UsageError: for the first invalid option.
        """
        if not self.task.computes:
            return
        from lightning.pytorch.callbacks import Callback
        from lightning.pytorch.loggers import Logger

        for nodes, base in ((self.callbacks, Callback), (self.logger, Logger)):
            for node in nodes.values():
                node.check(base)
                _check_suitable(node)
        self.optimizer.check_buildable()
        # The tokenizer may not exist yet; no check depends on the size of its vocabulary.
        wanted = self.data.tokenizer_vocab_size if isinstance(self.data, DataConfig) else 1
        builds_model = self.task.takes_chosen_model()
        model = self.model_config(self.model.get("vocab_size") or wanted) if builds_model else None
        callbacks = {node.option: node.check_builds() for node in self.callbacks.values()}
        scheduled = [option for option, callback in callbacks.items() if _moves_router_rate(callback)]
        if scheduled and self.optimizer.scheduler is not None:
            raise UsageError(
                f"{scheduled[0]} cannot be combined with optimizer.scheduler, which sets all learning rates"
            )
        for option, callback in callbacks.items():
            # A schedule depends on the model and on the other schedules.
            if model is not None and hasattr(callback, "check_fits"):
                try:
                    callback.check_fits(model, self.trainer.max_steps, list(callbacks.values()))
                except ValueError as reason:
                    raise UsageError(f"{option}.{reason}") from reason
        if devices:
            check_machine(self.trainer, self.data)


def bind(config: DictConfig | Mapping[str, Any]) -> RunConfig:
    """Convert a composed Hydra configuration to a checked :class:`RunConfig`.

    Imports the plugins, but not PyTorch: :meth:`RunConfig.check_buildable` makes the checks that require it.
    ``run_dir: null`` becomes a new name (:func:`mom.runs.directory.choose_run_dir`).

    Raises:
        UsageError: for the first option that is unknown or has an invalid type or value.
    """
    plain = _resolved(config)
    load_plugins(conform(OPTION, plain.get(OPTION, []), list[str]))
    groups = {name: _group(plain, name) for name in _GROUPS}
    task = task_section(groups["task"])
    known = (*_GROUPS, *_TOP_LEVEL)
    for name in plain:
        # Some options of a task are also top-level options: `prompt=…` is short for `task.prompt=…`.
        if name not in (*known, *task.top_level):
            raise unknown_option("", name, known)
    top = {
        name: conform(name, plain.get(name, _DEFAULTS.get(name)), hint) for name, hint in _TOP_LEVEL.items()
    }
    if top["name"] is not None and not re.fullmatch(r"[\w.-]+", top["name"]):
        raise UsageError(f"name must be letters, digits, and . _ -, got {as_written(top['name'])}")
    in_range("seed", top["seed"], ge=0, le=2**32 - 1)
    _check_weights(task, top)
    data = data_section(groups["data"])
    if task.data_kinds and data.kind not in task.data_kinds:
        raise _unsuitable_data(task, data.kind)
    model, router = (check_options(group, groups[group]) for group in ("model", "router"))
    if task.takes_chosen_model():
        check_model(model, router, data.sequence_length)
    optimizer, trainer = optimizer_section(groups["optimizer"]), TrainerConfig.from_mapping(groups["trainer"])
    if isinstance(optimizer, MuonConfig) and trainer.strategy == "fsdp":
        raise UsageError(
            "optimizer=muon cannot be combined with trainer=fsdp: Muon needs whole matrices, a process has a shard"
        )
    return RunConfig(
        task=task,
        model=model,
        router=router,
        data=data,
        optimizer=optimizer,
        trainer=trainer,
        callbacks=_nodes("callbacks", groups["callbacks"]),
        logger=_nodes("logger", groups["logger"]),
        launcher=launcher_section(groups["launcher"]),
        search=SearchConfig.from_mapping(groups["search"]) if groups["search"] else None,
        cluster=_cluster(task, groups["cluster"]),
        **{**top, "run_dir": choose_run_dir(task.name, top["run_dir"], top["name"])},
    )


_DEFAULTS: Mapping[str, Any] = {OPTION: [], "seed": 0, "debug": False, "tags": []}


def _resolved(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Convert to plain containers and resolve interpolations."""
    node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    try:
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        option = error.full_key or "the configuration"
        raise UsageError(f"cannot resolve {option}: {as_written(first_line(error))}") from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _group(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options of a group; a group that is missing or null has none."""
    options = plain.get(name)
    return {} if options is None else {str(key): value for key, value in conform(name, options, dict).items()}


def _cluster(task: TaskConfig, options: Mapping[str, Any]) -> ClusterConfig | None:
    """Return the cluster to plan for, None without options."""
    if not options:
        return None
    if not task.plans:
        raise UsageError(f"cluster requires task=cost, which plans for it, got task={task.name}")
    missing = [field.name for field in dataclasses.fields(ClusterConfig) if _is_required(field)]
    for name in missing:
        if name not in options:
            raise UsageError(f"cluster requires cluster.{name}")
    return ClusterConfig.from_mapping(options)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _check_weights(task: TaskConfig, top: Mapping[str, Any]) -> None:
    """Reject combinations of ``init``, ``ckpt``, and ``resume`` that exclude each other or do not suit the task."""
    init, ckpt, resume = (top[name] for name in ("init", "ckpt", "resume"))
    if init is not None and ckpt is not None:
        raise UsageError("init cannot be combined with ckpt, which provides the weights")
    if ckpt is not None and resume is not None:
        raise UsageError("ckpt cannot be combined with resume=auto, which finds the checkpoint itself")
    if ckpt is not None and not (task.resumes or task.reads_ckpt):
        raise UsageError(f"task={task.name} does not support ckpt; pass the weights as init")
    if resume is not None and not task.resumes:
        raise UsageError(f"task={task.name} does not support resume=auto")
    if task.needs_init and init is None and not (task.reads_ckpt and ckpt is not None):
        latest = latest_checkpoint()
        example = "" if latest is None else f", such as init={latest}"
        raise UsageError(
            f"task={task.name} requires init: a checkpoint, an exported folder, or a Hub id{example}"
        )


def _unsuitable_data(task: TaskConfig, kind: str) -> UsageError:
    """Build the error for data that the task cannot use, which names the tasks that can."""
    others = [f"task={name}" for name, section in TASKS.items() if kind in section.data_kinds]
    return UsageError(
        f"data.kind must be {either(task.data_kinds)} for task={task.name}, got {kind}, which requires {either(others)}"
    )


def _nodes(group: str, options: Mapping[str, Any]) -> dict[str, NodeConfig]:
    """Return the nodes of a group by name, except those set to null."""
    return {
        name: NodeConfig.from_mapping(f"{group}.{name}", node)
        for name, node in options.items()
        if node is not None
    }


_UNSUITABLE_CALLBACKS = {
    "LearningRateFinder": "the run's learning rate would not be the one that it records; search for it with -m "
    "search=tpe 'optimizer.lr=tag(log,interval(1e-4,1e-2))'",
    "BatchSizeFinder": "the run's batch size would not be the one that it records; measure the memory of some with "
    "task=cost task.measure_memory=true data.batch_size=...",
    "StochasticWeightAveraging": "it replaces the learning-rate schedule; use callbacks=ema",
    "GradientAccumulationScheduler": "the data order of a resumed run counts on trainer.accumulate_grad_batches",
}


def _check_suitable(node: NodeConfig) -> None:
    """Reject Lightning's callbacks that change the request while it runs."""
    for kind in getattr(node.load(), "__mro__", ()):
        if (
            kind.__module__.startswith(("lightning.", "pytorch_lightning."))
            and kind.__name__ in _UNSUITABLE_CALLBACKS
        ):
            raise UsageError(
                f"{node.option} cannot be {kind.__name__}: {_UNSUITABLE_CALLBACKS[kind.__name__]}"
            )


def _moves_router_rate(callback: Any) -> bool:
    """Return whether a callback is an active schedule of the routers' learning rate."""
    return getattr(callback, "name", None) == "router_lr_multiplier" and getattr(callback, "is_active", False)
