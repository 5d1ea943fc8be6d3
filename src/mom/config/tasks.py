"""The options of each task, a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mom.config.checks import in_range
from mom.config.data import GlueName
from mom.config.section import TaskConfig
from mom.errors import RequestError, UsageError, as_written, one_of


@dataclass(frozen=True)
class PretrainConfig(TaskConfig):
    """Train a language model.

    Args:
        plain_steps: optimizer steps of phase 1, in which the plain transformer is trained that is then
            upcycled. Used when the model has stages and no ``init`` is given; 0 starts the MoM from scratch.
        plain_warmup_steps: warm-up of phase 1; None takes ``optimizer.warmup_steps``, as the other phases do.
        baseline: train the plain transformer on for as many steps as the MoM and report it beside.
    """

    builds_model: ClassVar[bool] = True
    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling",)
    resumes: ClassVar[bool] = True

    name: Literal["pretrain"] = "pretrain"
    plain_steps: int = 300
    plain_warmup_steps: int | None = None
    baseline: bool = True

    def _check(self) -> None:
        self._range("plain_steps plain_warmup_steps", least=0)


@dataclass(frozen=True)
class UpcycleConfig(TaskConfig):
    """Make a Mixture-of-Modules of the plain transformer in ``init``.

    Args:
        layers: the plain model's layers, counted from 0, in the order of the new model: bottom blocks, for
            each stage its modules (as many as the larger pool has) and its anchor, top blocks. Any of them may
            be left out or used again. None takes all in order, and there must be just as many.
        attention_layers: where the attention modules come from instead, stage after stage.
        ffn_layers: the same for the feed-forward modules.
    """

    builds_model: ClassVar[bool] = True
    needs_init: ClassVar[bool] = True

    name: Literal["upcycle"] = "upcycle"
    layers: list[int] | None = None
    attention_layers: list[int] | None = None
    ffn_layers: list[int] | None = None


@dataclass(frozen=True)
class PrepareConfig(TaskConfig):
    """Tokenize a corpus into the cache."""

    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling",)

    name: Literal["prepare"] = "prepare"


@dataclass(frozen=True)
class EvaluateConfig(TaskConfig):
    """Measure a model on data.

    Args:
        split: which documents of text: those held out for validation, those for training, or all.
        stride: tokens from one window to the next, for text; each token is then predicted once, with at least
            ``data.sequence_length - stride`` tokens before it. None takes windows that do not overlap, as
            validation in training does, and predicts no window's first token.
        harness: tasks of the evaluation harness (lm-eval) to measure instead of the data.
        harness_path: a folder of task files to find their names in, in the place of the harness's own.
        harness_shots: solved examples in front of each; None is as each task has it.
        harness_limit: only so many examples of each task.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling", "glue", "xsum")
    needs_init: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("harness",)

    name: Literal["evaluate"] = "evaluate"
    split: Literal["validation", "train", "all"] = "validation"
    stride: int | None = None
    harness: list[str] | None = None
    harness_path: str | None = None
    harness_shots: int | None = None
    harness_limit: int | None = None

    def _check(self) -> None:
        self._range("stride harness_limit", least=1)
        self._range("harness_shots", least=0)
        if self.harness is not None and not self.harness:
            raise RequestError("harness", "[]", "names of tasks, such as [lambada_openai], or null")
        unused = {"stride": "null with harness=[…]"}
        if self.harness is None:
            options = ("harness_path", "harness_shots", "harness_limit")
            unused = dict.fromkeys(options, "null without harness=[…]")
        for option, allowed in unused.items():
            if (given := getattr(self, option)) is not None:
                raise RequestError(f"task.{option}", given, allowed)


@dataclass(frozen=True)
class GenerateConfig(TaskConfig):
    """Continue prompts. The options of generation have the names that transformers gives them.

    Args:
        prompt: a text to continue.
        prompts: a file of such texts: one on each line, or ``.jsonl`` with the key ``prompt``.
        max_new_tokens: at most so many tokens are added; the end-of-text token stops earlier.
        do_sample: draw each token from the model's probabilities; false takes the likeliest.
        temperature: divides the logits before the draw.
        top_k: draw from so many likeliest tokens only; None from all.
        top_p: draw from the fewest tokens that together have this probability.
        num_beams: beams of a beam search; 1 searches none.
        repetition_penalty: above 1 makes tokens that were used already less likely.
    """

    needs_init: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("prompt", "prompts")

    name: Literal["generate"] = "generate"
    prompt: str | None = None
    prompts: str | None = None
    max_new_tokens: int = 100
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    num_beams: int = 1
    repetition_penalty: float = 1.0

    def _check(self) -> None:
        self._range("max_new_tokens top_k num_beams", least=1)
        self._range("temperature repetition_penalty", above=0)
        self._range("top_p", above=0, most=1)
        if (self.prompt is None) == (self.prompts is None):
            given = "null" if self.prompt is None else "given together with prompts"
            raise RequestError("prompt", given, "a text to continue, or prompts=<file>; one of the two")


@dataclass(frozen=True)
class FinetuneConfig(TaskConfig):
    """Fine-tune a model on a task of GLUE or on XSum.

    Args:
        epochs: passes over the training rows; ``trainer.max_steps`` ends training if it comes first.
        dropout: in the place of the weights' own; None keeps that.
        tasks: GLUE tasks to go through one after the other; None is the one of ``data.name``.
        seeds: seeds to go through for each of them; None is the one of ``seed``.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("glue", "xsum")
    needs_init: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    reads_ckpt: ClassVar[bool] = True

    name: Literal["finetune"] = "finetune"
    epochs: float = 3.0
    dropout: float | None = None
    tasks: list[GlueName] | None = None
    seeds: list[int] | None = None

    def _check(self) -> None:
        self._range("epochs", above=0)
        self._range("dropout", least=0, below=1)
        for seed in self.seeds or ():
            in_range("task.seeds", seed, least=0, most=2**32 - 1)
        for name in ("tasks", "seeds"):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise RequestError(f"task.{name}", as_written(given), "a list of different ones, or null")


@dataclass(frozen=True)
class ExportConfig(TaskConfig):
    """Write a model as a folder for transformers."""

    needs_init: ClassVar[bool] = True

    name: Literal["export"] = "export"


@dataclass(frozen=True)
class CostConfig(TaskConfig):
    """Tell what models cost.

    Args:
        models: names of choices of the model group, each with the other options of the request; None is the chosen
            one, or the model of ``init``.
        routed_on: what the modules that the model of ``init`` uses are counted on: a few batches of random
            tokens, which need no data, or of validation text.
        measure_memory: also run a forward and a training step of each model to measure their peak memory.
        budget: find the largest model like the chosen one that costs no more than the model ``of``: ``params``,
            ``flops`` of a forward, or ``memory`` of a forward.
        of: a choice of the model group.
        solve_for: what ``budget`` varies: ``modules`` (both pools), ``top_k`` or ``rounds``; None is ``rounds`` for
            ``flops`` and ``modules`` otherwise.
    """

    builds_model: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("models", "budget", "of")

    name: Literal["cost"] = "cost"
    models: list[str] | None = None
    routed_on: Literal["random", "validation"] = "random"
    measure_memory: bool = True
    budget: Literal["params", "flops", "memory"] | None = None
    of: str | None = None
    solve_for: Literal["modules", "top_k", "rounds"] | None = None

    def _check(self) -> None:
        if (self.budget is None) != (self.of is None):
            missing, given = ("of", "budget") if self.of is None else ("budget", "of")
            allowed = "a choice of the model group" if missing == "of" else "params, flops or memory"
            raise RequestError(missing, "null", f"{allowed} where {given} is given")
        if self.budget is not None and self.models is not None:
            raise RequestError(
                "models", as_written(self.models), "null with budget, which is about the chosen model"
            )
        if self.solve_for is not None and self.budget is None:
            raise RequestError("task.solve_for", self.solve_for, "null without budget")
        if self.models is not None and (not self.models or len(set(self.models)) < len(self.models)):
            raise RequestError("models", as_written(self.models), "a list of different models, or null")

    def takes_chosen_model(self) -> bool:
        """Not where ``models`` names others."""
        return self.models is None


@dataclass(frozen=True)
class CompareConfig(TaskConfig):
    """Compare finished runs.

    Args:
        runs: directories of runs, directories that hold some (such as a sweep's), tables of runs, or patterns of these.
        metric: a name in ``summary.json``.
        mode: whether the smallest or the largest mean is best.
        baseline: a run, as a directory or a row of a table; every group is compared with that run's group, seed by
            seed. With ``cost_metric`` several runs, whose groups are the points of a curve.
        cost_metric: the metric that measures what a run cost, such as ``throughput/training_flops``: a run is compared
            with the baselines' curve at its own cost.
        reference_metric: another metric of the same run to compare each run with; ``baseline/val/loss`` is the plain
            baseline.
        group_by: options to group by; None is all in which the runs differ.
        ignore: options, or groups of them, in which the runs of a group may differ besides the seed.
        confidence: confidence level of the interval of the mean difference.
        save_runs: a ``.csv`` file to write the runs to, one row each; ``runs`` can then name it instead.
    """

    top_level: ClassVar[tuple[str, ...]] = ("runs",)
    computes: ClassVar[bool] = False

    name: Literal["compare"] = "compare"
    runs: str | list[str] | None = None
    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    baseline: str | list[str] | None = None
    cost_metric: str | None = None
    reference_metric: str | None = None
    group_by: list[str] | None = None
    ignore: list[str] | None = None
    confidence: float = 0.95
    save_runs: str | None = None

    def _check(self) -> None:
        self._range("confidence", above=0, below=1)
        if not self.runs:
            raise UsageError(
                "task=compare requires runs: run directories, tables of runs, or patterns of these"
            )
        if self.save_runs is not None and not self.save_runs.endswith(".csv"):
            raise UsageError(f"task.save_runs must end in .csv, got {as_written(self.save_runs)}")
        if self.baseline is not None and self.reference_metric is not None:
            raise UsageError(
                "task.reference_metric cannot be combined with task.baseline: each run is compared with one partner"
            )
        if self.baseline == []:
            raise UsageError("task.baseline must name a run, or be null, got []")
        if self.cost_metric is None and len(self.baselines()) > 1:
            raise UsageError(
                f"task.baseline must name one run unless task.cost_metric is set, got {as_written(self.baseline)}"
            )
        if self.cost_metric is not None and len(self.baselines()) < 2:
            raise UsageError(
                "task.cost_metric requires task.baseline to name at least two runs, "
                f"got {as_written(self.baseline)}"
            )

    def baselines(self) -> list[str]:
        """Return ``baseline`` as a list."""
        if self.baseline is None:
            return []
        return [self.baseline] if isinstance(self.baseline, str) else self.baseline


@dataclass(frozen=True)
class DashboardConfig(TaskConfig):
    """Make a workspace at Weights & Biases.

    Args:
        entity: the user or team it belongs to; None is the one that is logged in.
        project: the project of the runs.
        title: what it is called.
    """

    computes: ClassVar[bool] = False

    name: Literal["dashboard"] = "dashboard"
    entity: str | None = None
    project: str = "mom"
    title: str = "Mixture-of-Modules"

    def _check(self) -> None:
        for name in ("entity", "project", "title"):
            if getattr(self, name) == "":
                raise RequestError(f"task.{name}", "''", "a name")


@dataclass(frozen=True)
class AnalyzeConfig(TaskConfig):
    """Record what tokens choose, and report it.

    Args:
        split: which documents: those held out for validation, those for training, or all.
        num_tokens: recorded at most, from the beginning of the split; None records all.
        stages: whose routing is written to the traces; None is all.
        report_tokens: tokens in the token path viewer of ``report.html``, at most.
        top_tokens: token types listed for each module, at most.
        removal: what the loss without modules is measured for: each of them ``alone``, also for more and more of
            them ``greedily`` (a pass over ``removal_tokens`` for every module left in every step), or ``none``.
        removal_tokens: recorded tokens that the loss without modules is measured on, at most.
        removal_tolerance: rise of the loss, in nats per token, up to which modules count as droppable.
        similarity_inputs: tokens, over all rounds, on which modules' outputs are compared; 0 compares none.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling",)
    needs_init: ClassVar[bool] = True
    reads_ckpt: ClassVar[bool] = True

    name: Literal["analyze"] = "analyze"
    split: Literal["validation", "train", "all"] = "validation"
    num_tokens: int | None = 20_000
    stages: list[int] | None = None
    report_tokens: int = 20_000
    top_tokens: int = 12
    removal: Literal["greedily", "alone", "none"] = "greedily"
    removal_tokens: int = 4096
    removal_tolerance: float = 0.01
    similarity_inputs: int = 1024

    def _check(self) -> None:
        self._range("num_tokens removal_tokens", least=2)
        self._range("report_tokens top_tokens", least=1)
        self._range("similarity_inputs", least=0)
        self._range("removal_tolerance", least=0)
        stages = self.stages
        if stages is not None and (not stages or len(set(stages)) < len(stages) or min(stages) < 0):
            raise RequestError("task.stages", as_written(stages), "a list of different stages, or null")


TASKS: Mapping[str, type[TaskConfig]] = {
    section.name: section
    for section in (
        PretrainConfig,
        FinetuneConfig,
        EvaluateConfig,
        AnalyzeConfig,
        GenerateConfig,
        ExportConfig,
        UpcycleConfig,
        PrepareConfig,
        CostConfig,
        CompareConfig,
        DashboardConfig,
    )
}
"""Every task's section by the task's name."""


def task_section(given: Mapping[str, Any]) -> TaskConfig:
    """Make the section of the task that ``given`` names, pretrain where it names none.

    Raises:
        RequestError: no such task, or an option that it does not have.
    """
    name = given.get("name", PretrainConfig.name)
    if name not in TASKS:
        raise RequestError("task.name", as_written(name), one_of(name, list(TASKS)))
    return TASKS[name].from_mapping(given)
