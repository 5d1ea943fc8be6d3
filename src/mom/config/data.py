"""The options of each kind of data: a section for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mom.config.checks import as_written, one_of
from mom.config.sections import DataConfig, DataSection
from mom.errors import RequestError

GlueName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


@dataclass(frozen=True)
class GlueConfig(DataSection):
    """One task of GLUE: sentences, or pairs of them, with a label.

    Args:
        name: the task.
        path: folder of GLUE (with ``CoLA/``, ``SST-2/``, …) or of this task, in GLUE's own TSV form or as
            ``.jsonl`` or ``.parquet`` with the Hub's column names; None takes ``nyu-mll/glue`` from the Hub.
        tokenizer: None means that of the weights in ``init``.
        sequence_length: tokens in an example at most; longer ones are truncated, and counted in the log.
        skip_broken_rows: leave out rows with a wrong number of fields (GLUE's own QQP has some) and log how
            many, instead of refusing the file.
    """

    kind: Literal["glue"] = "glue"
    name: GlueName = "mrpc"
    sequence_length: int = 128
    batch_size: int = 32
    skip_broken_rows: bool = False

    def _check(self) -> None:
        super()._check()
        self._range("sequence_length", least=8)


DATA: Mapping[str, type[DataSection]] = {section.kind: section for section in (DataConfig, GlueConfig)}
"""Every kind of data and its section."""


def data_section(given: Mapping[str, Any]) -> DataSection:
    """Make the section of the kind of data that ``given`` names; none named is text for a language model.

    Raises:
        RequestError: no such kind, or an option that it does not have.
    """
    kind = given.get("kind", DataConfig.kind)
    if kind not in DATA:
        raise RequestError("data.kind", as_written(kind), one_of(kind, list(DATA)))
    return DATA[kind].from_mapping(given)
