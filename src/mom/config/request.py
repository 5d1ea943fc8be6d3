"""The whole of a request: every group, checked, and the options that stand above the groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mom.config.checks import conform, in_range, known_names, unknown_option
from mom.config.data import DataConfig, DataSection, data_section
from mom.config.launcher import LauncherConfig, launcher_section
from mom.config.nodes import NodeConfig
from mom.config.search import SearchConfig
from mom.config.section import TaskConfig
from mom.config.tasks import task_section
from mom.config.training import OptimizerConfig, TrainerConfig
from mom.errors import RequestError, as_written
from mom.model.options import ModelOptions, options_of
from mom.model.pools import PoolKind  # noqa: F401 (registers the built-in module kinds)
from mom.model.registry import InvalidOption
from mom.model.routers import RouterKind  # noqa: F401 (registers the built-in routers)
from mom.runs.directory import choose_run_dir

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
)
_TOP_LEVEL: Mapping[str, Any] = {
    "seed": int,
    "init": str | None,
    "ckpt": str | None,
    "resume": Literal["auto"] | None,
    "debug": bool,
    "run_dir": str | None,
}


@dataclass(frozen=True)
class RunConfig:
    """One request, typed and checked; made by :func:`bind`.

    Args:
        task: what to do.
        model: options of the ``model`` group, fields of ``MoMConfig``.
        router: options of the ``router`` group, fields of ``MoMConfig``.
        data: text, tokens and batches.
        optimizer: AdamW and its schedule.
        trainer: Lightning's Trainer.
        callbacks: callbacks by name.
        logger: loggers by name.
        launcher: how the jobs of a sweep are started.
        search: how the options of its trials are drawn, in a search.
        seed: of everything random.
        init: weights to start from: a checkpoint, an exported folder or a Hub id.
        ckpt: a run's checkpoint to go on from, optimizer and all.
        resume: ``auto`` goes on from the last checkpoint in ``run_dir``, if there is one.
        debug: show the traceback of a wrong request too.
        run_dir: folder of this run.
    """

    task: TaskConfig
    model: dict[str, Any]
    router: dict[str, Any]
    data: DataSection
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    callbacks: dict[str, NodeConfig]
    logger: dict[str, NodeConfig]
    launcher: LauncherConfig
    search: SearchConfig | None
    seed: int
    init: str | None
    ckpt: str | None
    resume: Literal["auto"] | None
    debug: bool
    run_dir: str

    def model_config(self, vocab_size: int) -> MoMConfig:
        """The model's configuration: the ``model`` and ``router`` options merged.

        Args:
            vocab_size: the tokenizer's; used where ``model.vocab_size`` is null.

        Raises:
            RequestError: naming the option in its group, if the model cannot be so.
        """
        from mom.model import MoMConfig

        given = self.model.get("vocab_size")
        if given is not None and given < vocab_size:
            raise RequestError(
                "model.vocab_size",
                given,
                f"at least the {vocab_size} of the tokenizer, or null to take just that",
            )
        fields = {**self.model, **self.router, "vocab_size": vocab_size if given is None else given}
        try:
            return MoMConfig(**fields)
        except ValueError as reason:
            raise refused_model(reason) from reason

    def check_buildable(self, *, devices: bool = True) -> None:
        """Check what needs the libraries: the model, the callbacks, the loggers and the devices.

        Reads no data and builds no model, but imports PyTorch, Lightning and transformers.

        Args:
            devices: whether the run will be on this machine, which then must have the trainer's devices.

        Raises:
            RequestError: for the first option that cannot be.
        """
        if not self.task.computes:
            return
        model = self._check_model() if self.task.takes_chosen_model() else None
        for node in (*self.callbacks.values(), *self.logger.values()):
            node.check()
        for node in self.callbacks.values():
            callback = node.check_builds()
            # Some of ours do not go with every model.
            if model is not None and hasattr(callback, "check_fits"):
                try:
                    callback.check_fits(model, self.trainer.max_steps)
                except ValueError as reason:
                    name, _, rest = str(reason).partition(": ")
                    given, _, allowed = rest.partition("; ")
                    raise RequestError(f"{node.option}.{name}", given, allowed) from reason
        if devices:
            _check_devices(self.trainer)

    def _check_model(self) -> MoMConfig:
        # The tokenizer may not exist yet; whatever its size, no other check depends on it.
        wanted = self.data.tokenizer_vocab_size if isinstance(self.data, DataConfig) else 1
        config = self.model_config(self.model.get("vocab_size") or wanted)
        if self.data.sequence_length > config.max_positions:
            raise RequestError(
                "data.sequence_length",
                self.data.sequence_length,
                f"at most model.max_positions ({config.max_positions})",
            )
        # The model itself allows this: the authors' checkpoints have it. To train so is always a mistake.
        if (
            config.num_stages
            and config.normalize_weights is True
            and config.router_kind.learns
            and any(layout.top_k == 1 for layout in config.pools())
        ):
            raise RequestError(
                "router.normalize_weights",
                "true",
                "auto or false with model.top_k=1: every weight would be 1 and the router learn nothing",
            )
        return config


def bind(config: DictConfig | Mapping[str, Any]) -> RunConfig:
    """Turn a composed Hydra configuration into a checked :class:`RunConfig`.

    Imports no heavy library: names, types and ranges are checked here, and what needs the libraries in
    :meth:`RunConfig.check_buildable`. ``run_dir: null`` becomes a new name
    (:func:`mom.runs.directory.choose_run_dir`).

    Raises:
        RequestError: for the first option that is unknown, of a wrong type or out of range.
    """
    plain = _resolved(config)
    known = (*_GROUPS, *_TOP_LEVEL)
    groups = {name: _group(plain, name) for name in _GROUPS}
    task = task_section(groups["task"])
    for name, value in plain.items():
        # Some tasks' options stand at the top: `prompt=…` says `task.prompt=…`.
        if name not in (*known, *task.top_level):
            raise RequestError(str(name), as_written(value), unknown_option("", str(name), known))
    top = {
        name: conform(name, plain.get(name, _DEFAULTS.get(name)), hint) for name, hint in _TOP_LEVEL.items()
    }
    in_range("seed", top["seed"], least=0, most=2**32 - 1)
    if top["init"] is not None and top["ckpt"] is not None:
        raise RequestError(
            "init", top["init"], "null when ckpt is given: a checkpoint brings its own weights"
        )
    if top["ckpt"] is not None and top["resume"] is not None:
        raise RequestError(
            "ckpt", top["ckpt"], "null when resume=auto is given, which finds the checkpoint itself"
        )
    for name in ("ckpt", "resume"):
        if top[name] is not None and not task.resumes and not (name == "ckpt" and task.reads_ckpt):
            raise RequestError(name, top[name], f"null for task={task.name}; init names the weights")
    if top["init"] is None and task.needs_init and not (task.reads_ckpt and top["ckpt"] is not None):
        raise RequestError(
            "init", "null", f"the weights for task={task.name}: a checkpoint, a folder or a Hub id"
        )
    data = data_section(groups["data"])
    if task.data_kinds and data.kind not in task.data_kinds:
        raise RequestError(
            "data.kind", data.kind, f"{' or '.join(task.data_kinds)}, which task={task.name} works on"
        )
    model, router = (_model_options(group, groups[group]) for group in ("model", "router"))
    if task.takes_chosen_model():
        try:
            ModelOptions.from_mapping({**model, **router, "vocab_size": model.get("vocab_size") or 1})
        except InvalidOption as reason:
            raise refused_model(reason) from reason
    return RunConfig(
        task=task,
        model=model,
        router=router,
        data=data,
        optimizer=OptimizerConfig.from_mapping(groups["optimizer"]),
        trainer=TrainerConfig.from_mapping(groups["trainer"]),
        callbacks=_nodes("callbacks", groups["callbacks"]),
        logger=_nodes("logger", groups["logger"]),
        launcher=launcher_section(groups["launcher"]),
        search=SearchConfig.from_mapping(groups["search"]) if groups["search"] else None,
        **{**top, "run_dir": choose_run_dir(task.name, top["run_dir"])},
    )


_DEFAULTS: Mapping[str, Any] = {"seed": 0, "debug": False}


def _resolved(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Plain containers, interpolations resolved."""
    node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    try:
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(error.full_key or "config", reason, "a value that can be resolved") from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _group(plain: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One group's options; a group that is left out or null has none."""
    options = plain.get(name)
    return {} if options is None else {str(key): value for key, value in conform(name, options, dict).items()}


def _model_options(group: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and types of the options of ``model`` or ``router``."""
    hints = {name: one.type for name, one in options_of(group).items()}
    if group == "model":
        hints["vocab_size"] = int | None  # null takes the tokenizer's
    known_names(group, options, hints)
    return {name: conform(f"{group}.{name}", value, hints[name]) for name, value in options.items()}


def _nodes(group: str, options: Mapping[str, Any]) -> dict[str, NodeConfig]:
    """Nodes by name; one set to null is left out."""
    return {
        name: NodeConfig.from_mapping(f"{group}.{name}", node)
        for name, node in options.items()
        if node is not None
    }


def refused_model(reason: ValueError) -> RequestError:
    """Put the option's group in front of an error about the model."""
    if not isinstance(reason, InvalidOption):
        return RequestError("model", as_written(str(reason)), "a model that can be built")
    group = "router" if reason.option in options_of("router") else "model"
    rule = reason.rule.removeprefix("must be ")
    return RequestError(f"{group}.{reason.option}", as_written(reason.value), rule)


def _check_devices(trainer: TrainerConfig) -> None:
    """Refuse an accelerator this machine lacks, or more devices than it has."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    strategies = sorted({"auto", *StrategyRegistry.available_strategies()})
    if trainer.strategy not in strategies:
        raise RequestError("trainer.strategy", trainer.strategy, f"one of {', '.join(strategies)}")
    name = "cuda" if trainer.accelerator == "gpu" else trainer.accelerator
    if name in ("auto", "cpu"):
        return
    here = [one for one in ("cuda", "mps", "tpu") if AcceleratorRegistry[one]["accelerator"].is_available()]
    if name not in here and not (trainer.accelerator == "gpu" and "mps" in here):
        raise RequestError(
            "trainer.accelerator", trainer.accelerator, f"one of {', '.join(['auto', 'cpu', *here])}"
        )
    count = AcceleratorRegistry[name]["accelerator"].auto_device_count() if name in here else 1
    if isinstance(trainer.devices, int) and trainer.devices > count:
        raise RequestError(
            "trainer.devices", trainer.devices, f"at most the {count} this machine has, or -1 for all"
        )
