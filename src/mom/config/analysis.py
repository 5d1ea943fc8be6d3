"""The options of ``task=analyze``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mom.config.checks import as_written
from mom.config.section import TaskConfig
from mom.errors import RequestError


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
