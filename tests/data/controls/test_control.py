"""Controls are registered by name, checked without PyTorch, and interchangeable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mom.config import bind
from mom.config.composition import composed
from mom.config.data import CONTROLS
from mom.data.controls import Control, Examples, register_control
from mom.data.controls.control import IGNORED
from mom.errors import UsageError

CONF = Path(__file__).resolve().parents[3] / "conf"
FILES = {path.stem: path for path in (CONF / "data" / "control").glob("*.yaml")}


def request(name: str) -> Control:
    data = bind(composed(CONF, [f"data=control/{name}"])).data
    assert isinstance(data, Control)
    return data


def test_every_control_has_a_file_with_its_defaults() -> None:
    assert set(FILES) == set(CONTROLS)
    for name, control in CONTROLS.items():
        assert control() == request(name)


@pytest.mark.parametrize("name", CONTROLS)
def test_examples_keep_the_interface(name: str) -> None:
    control = request(name)
    for examples in (control.training(), control.validation()):
        number, length = examples.input_ids.shape
        assert number and length == control.sequence_length
        for part in (examples.input_ids, examples.labels, *(examples.choices or {}).values()):
            assert part.shape == (number, length) and part.dtype == torch.int64
        assert examples.input_ids.min() >= 0 and examples.input_ids.max() < control.vocab_size
        answers = examples.labels[examples.labels != IGNORED]
        assert len(answers) >= number and answers.min() >= 0 and answers.max() < control.vocab_size
        assert examples.bucket.shape == (number,) and examples.bucket.dtype == torch.int64
    assert set(examples.bucket.tolist()) == set(range(len(control.buckets)))
    assert len(set(control.buckets)) == len(control.buckets)
    assert control.headline in control.buckets
    assert 0 < control.chance < 1


@pytest.mark.parametrize("name", CONTROLS)
def test_no_validation_example_of_the_headline_is_trained_on(name: str) -> None:
    control = request(name)
    trained = {tuple(row) for row in control.training().input_ids.tolist()}
    examples = control.validation()
    rows = examples.input_ids[examples.bucket == control.buckets.index(control.headline)]

    assert not trained & {tuple(row) for row in rows.tolist()}


def test_a_request_for_a_control_is_checked_without_pytorch() -> None:
    code = (
        "import sys; from pathlib import Path; from mom.config import bind; "
        "from mom.config.composition import composed; "
        f"[bind(composed(Path({str(CONF)!r}), ['data=control/' + name])) for name in {sorted(FILES)}]; "
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_an_unknown_control_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^data\.name must be .*facts.*, got fact; did you mean facts\?$"):
        bind({"run_dir": "x", "data": {"kind": "control", "name": "fact"}})


def test_a_control_of_your_own_is_registered_by_a_decorator() -> None:
    try:

        @register_control("copy")
        class Copy(Control):
            symbols: int = 5
            vocab_size = property(lambda self: self.symbols)
            sequence_length = property(lambda self: 2)
            chance = property(lambda self: 1 / self.symbols)
            buckets = ("all",)
            headline = "all"

            def training(self) -> Examples:
                ids = torch.arange(self.symbols)[:, None].repeat(1, 2)
                return Examples(ids, ids, torch.zeros(self.symbols, dtype=torch.int64))

            validation = training

        data = bind({"run_dir": "x", "data": {"kind": "control", "name": "copy", "symbols": 3}}).data
        assert data == Copy(symbols=3)
        assert bind(composed(CONF, ["data=control/copy", "data.symbols=4"])).data == Copy(symbols=4)
        with pytest.raises(UsageError, match=r"^unknown option data\.symbol; did you mean data\.symbols\?$"):
            bind({"run_dir": "x", "data": {"kind": "control", "name": "copy", "symbol": 3}})
        with pytest.raises(ValueError, match=r"^data\.name copy is already registered by "):
            register_control("copy")(type("Other", (Control,), {}))
    finally:
        CONTROLS.pop("copy", None)
