"""Options of the ``task`` group: one section for each task; those that read finished runs are in ``record_tasks``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mom.config.checks import in_range
from mom.config.labeled_data import GlueName
from mom.config.record_tasks import CompareConfig, DashboardConfig, RunsConfig
from mom.config.section import TaskConfig, section_by_name
from mom.errors import UsageError, as_written


@dataclass(frozen=True)
class PretrainConfig(TaskConfig):
    """Train a language model on text or on a control.

    Args:
        plain_steps: optimizer steps of phase 1, which trains the plain transformer that is then upcycled. Used if
            the model has stages and ``init`` is not set; 0 trains the MoM from scratch.
        plain_warmup_steps: warmup of phase 1; None is ``optimizer.warmup_steps``, as in the other phases.
        baseline: also continue training the plain transformer for as many steps as the MoM, for comparison.
    """

    builds_model: ClassVar[bool] = True
    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling", "control")
    resumes: ClassVar[bool] = True

    name: Literal["pretrain"] = "pretrain"
    plain_steps: int = 0
    plain_warmup_steps: int | None = None
    baseline: bool = False

    def _check(self) -> None:
        self._range("plain_steps plain_warmup_steps", ge=0)


@dataclass(frozen=True)
class UpcycleConfig(TaskConfig):
    """Upcycle the plain transformer in ``init`` to a Mixture-of-Modules.

    Args:
        layers: source layers, counted from 0, in the order of the new model: bottom blocks, modules (as many as
            the largest pool has) and anchor of each stage, top blocks. Layers may be omitted or repeated. None uses
            all layers in order; there must be exactly as many as the new model needs.
        attention_layers: source layers of the attention modules, stage by stage, if they differ.
        ffn_layers: source layers of the feed-forward modules, if they differ.
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
    """Evaluate a model on data.

    Args:
        split: documents of a text: those held out for validation, the training documents, or all.
        stride: tokens from one window to the next, for text. Each token is predicted once, with at least
            ``data.sequence_length - stride`` tokens of context. None uses non-overlapping windows, like validation
            during training, whose first tokens are not predicted.
        harness: tasks of the evaluation harness (lm-eval) to run instead of evaluating on the data.
        harness_path: directory with task files to use instead of those in the harness.
        num_fewshot: solved examples in each prompt; None is the task's default.
        harness_limit: maximum examples per task.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling", "glue", "classification", "xsum", "control")
    needs_init: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("harness",)

    name: Literal["evaluate"] = "evaluate"
    split: Literal["validation", "train", "all"] = "validation"
    stride: int | None = None
    harness: list[str] | None = None
    harness_path: str | None = None
    num_fewshot: int | None = None
    harness_limit: int | None = None

    def _check(self) -> None:
        self._range("stride harness_limit", ge=1)
        self._range("num_fewshot", ge=0)
        if self.harness == []:
            raise UsageError("harness must name at least one task, such as [lambada_openai], got []")
        if self.harness is not None and self.stride is not None:
            raise UsageError(
                "task.stride cannot be combined with harness: the harness chooses its own windows"
            )
        for option in ("harness_path", "num_fewshot", "harness_limit"):
            if self.harness is None and getattr(self, option) is not None:
                raise UsageError(
                    f"task.{option} requires harness: the tasks to evaluate, such as [lambada_openai]"
                )


@dataclass(frozen=True)
class GenerateConfig(TaskConfig):
    """Continue prompts. Generation options have the same names as in transformers.

    Args:
        prompt: text to continue; ``-`` is the text on standard input.
        prompts: file of texts to continue: one per line, or ``.jsonl`` with the key ``prompt``.
        prompt_file: file whose whole content is the text to continue.
        show_routing: color each token by its depth, in a terminal, and write the depths.
        max_new_tokens: maximum tokens to generate; the end-of-text token stops earlier.
        do_sample: sample each token; false takes the most likely token.
        temperature: divides the logits before sampling.
        top_k: sample from this many most likely tokens; None from all.
        top_p: sample from the smallest set of tokens with at least this total probability.
        num_beams: beams of a beam search; 1 disables it.
        repetition_penalty: values above 1 make tokens that already occurred less likely.
    """

    needs_init: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("prompt", "prompts", "show_routing")

    name: Literal["generate"] = "generate"
    prompt: str | None = None
    prompts: str | None = None
    prompt_file: str | None = None
    show_routing: bool = False
    max_new_tokens: int = 100
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    num_beams: int = 1
    repetition_penalty: float = 1.0

    def _check(self) -> None:
        self._range("max_new_tokens top_k num_beams", ge=1)
        self._range("temperature repetition_penalty", gt=0)
        self._range("top_p", gt=0, le=1)
        sources = {"prompt": self.prompt, "prompts": self.prompts, "task.prompt_file": self.prompt_file}
        given = [name for name, value in sources.items() if value is not None]
        if not given and not sys.stdin.isatty():
            raise UsageError(
                "task=generate requires prompt or prompts: a text to continue (- for standard input), or a file of "
                "texts; in a terminal, it asks for texts if neither is set"
            )
        if len(given) > 1:
            raise UsageError(f"{given[0]} cannot be combined with {given[1]}: set one of them")
        if self.show_routing and self.num_beams > 1:
            raise UsageError(
                "show_routing cannot be combined with task.num_beams, which replaces earlier tokens"
            )


@dataclass(frozen=True)
class FinetuneConfig(TaskConfig):
    """Fine-tune a model on GLUE, XSum, or your own labeled texts or pairs of texts.

    Args:
        epochs: passes over the training data; ``trainer.max_steps`` ends training earlier if it is reached first.
        dropout: dropout probability; None keeps the model's own.
        tasks: GLUE tasks to fine-tune on, one after another; None is ``data.name``.
        seeds: seeds to use for each task; None is ``seed``.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("glue", "classification", "xsum")
    needs_init: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    reads_ckpt: ClassVar[bool] = True

    name: Literal["finetune"] = "finetune"
    epochs: float = 3.0
    dropout: float | None = None
    tasks: list[GlueName] | None = None
    seeds: list[int] | None = None

    def _check(self) -> None:
        self._range("epochs", gt=0)
        self._range("dropout", ge=0, lt=1)
        for seed in self.seeds or ():
            in_range("task.seeds", seed, ge=0, le=2**32 - 1)
        _check_distinct("task.tasks", self.tasks)
        _check_distinct("task.seeds", self.seeds)


def _check_distinct(option: str, given: list[Any] | None) -> None:
    """Reject a list that is empty or has duplicates; None passes."""
    if given is not None and (not given or len(set(given)) < len(given)):
        raise UsageError(f"{option} must be null or a list of distinct items, got {as_written(given)}")


@dataclass(frozen=True)
class ExportConfig(TaskConfig):
    """Export a model as a directory for transformers.

    Args:
        push_to_hub: repository on the Hub, ``user/name``, to which the directory is pushed; it is created if needed.
        private: create a private repository.
        license: license of the weights for the model card, as the Hub names it, such as ``apache-2.0``.
    """

    needs_init: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("push_to_hub",)

    name: Literal["export"] = "export"
    push_to_hub: str | None = None
    private: bool = False
    license: str | None = None


@dataclass(frozen=True)
class CostConfig(TaskConfig):
    """Report the cost of models.

    Args:
        models: names in the model group, each combined with the other options of the request; None is the chosen
            model, or the model in ``init``.
        routed_on: tokens for which to count the modules used by the model in ``init``: a few batches of random
            tokens, which require no data, or validation text.
        measure_memory: also run a forward pass and a training step of each model to measure peak memory, which
            takes as long as they do.
        num_tokens: tokens to train on in a plan for a ``cluster``; None is ``trainer.max_steps`` steps.
        budget: find the largest variant of the chosen model that costs no more than ``reference_model`` in
            ``params``, ``flops`` of a forward pass, or ``memory`` of a forward pass.
        reference_model: name in the model group that sets the budget.
        solve_for: what to vary for ``budget``: ``modules`` (of all pools), ``top_k``, or ``rounds``; None is
            ``rounds`` for ``flops`` and ``modules`` otherwise.
    """

    builds_model: ClassVar[bool] = True
    # Nothing is trained: neither callbacks nor loggers are built, and the devices may be those of a cluster.
    computes: ClassVar[bool] = False
    plans: ClassVar[bool] = True
    top_level: ClassVar[tuple[str, ...]] = ("models", "budget", "reference_model")

    name: Literal["cost"] = "cost"
    models: list[str] | None = None
    routed_on: Literal["random", "validation"] = "random"
    measure_memory: bool = False
    num_tokens: float | None = None
    budget: Literal["params", "flops", "memory"] | None = None
    reference_model: str | None = None
    solve_for: Literal["modules", "top_k", "rounds"] | None = None

    def _check(self) -> None:
        if self.budget is not None and self.reference_model is None:
            raise UsageError("budget requires reference_model: the name of a model that sets the budget")
        if self.reference_model is not None and self.budget is None:
            raise UsageError("reference_model requires budget: one of params, flops, memory")
        if self.budget is not None and self.models is not None:
            raise UsageError("models cannot be combined with budget, which varies the chosen model")
        if self.solve_for is not None and self.budget is None:
            raise UsageError("task.solve_for requires budget: one of params, flops, memory")
        self._range("num_tokens", gt=0)
        _check_distinct("models", self.models)

    def takes_chosen_model(self) -> bool:
        """Return whether the cost of the chosen model is reported, rather than that of ``models``."""
        return self.models is None


@dataclass(frozen=True)
class AnalyzeConfig(TaskConfig):
    """Record the routing of tokens and report it.

    Args:
        corpus: corpus of a mixture to analyze; None is the first.
        split: documents to analyze: those held out for validation, the training documents, or all.
        num_tokens: maximum tokens to record, from the start of the split; None records all.
        stages: stages whose routing is written to the traces; None is all.
        report_tokens: maximum tokens in the token path viewer of ``report.html``.
        top_tokens: maximum token types to list per module.
        ablation: modules to ablate to measure the loss without them: each ``alone``; ``greedy``, also a growing set
            (each step is a pass over ``ablation_tokens`` per remaining module); or ``none``.
        ablation_tokens: maximum recorded tokens on which the loss of ablated models is measured.
        ablation_tolerance: loss increase, in nats per token, up to which modules count as removable.
        similarity_inputs: tokens, over all rounds, on which the modules' outputs are compared; 0 disables this.
        value_tokens: maximum recorded tokens on which the loss with replaced choices is measured; 0 disables this.
        regret_budget: tokens to run through the model to try other choices of sampled tokens; 0 disables this.
        regret_paths: maximum number of paths to try in the search for a token's best path; 0 disables the search.
    """

    data_kinds: ClassVar[tuple[str, ...]] = ("language_modeling", "control")
    needs_init: ClassVar[bool] = True
    reads_ckpt: ClassVar[bool] = True

    name: Literal["analyze"] = "analyze"
    corpus: str | None = None
    split: Literal["validation", "train", "all"] = "validation"
    num_tokens: int | None = 20_000
    stages: list[int] | None = None
    report_tokens: int = 20_000
    top_tokens: int = 12
    ablation: Literal["greedy", "alone", "none"] = "greedy"
    ablation_tokens: int = 4096
    ablation_tolerance: float = 0.01
    similarity_inputs: int = 1024
    value_tokens: int = 1024
    regret_budget: int = 80_000
    regret_paths: int = 256

    def _check(self) -> None:
        self._range("num_tokens ablation_tokens", ge=2)
        self._range("report_tokens top_tokens", ge=1)
        self._range("similarity_inputs ablation_tolerance", ge=0)
        self._range("value_tokens regret_budget regret_paths", ge=0)
        _check_distinct("task.stages", self.stages)
        for stage in self.stages or ():
            in_range("task.stages", stage, ge=0)


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
        RunsConfig,
        DashboardConfig,
    )
}
"""Sections by name of the task."""


def task_section(given: Mapping[str, Any]) -> TaskConfig:
    """Create the section of the task in ``given``, by default pretrain.

    Raises:
        UsageError: for an unknown task, or an invalid option.
    """
    return section_by_name(TASKS, given, "name", PretrainConfig.name)
