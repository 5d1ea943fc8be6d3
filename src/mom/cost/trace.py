"""Trace a training step without computing it: the tensors that it keeps, its peak memory, and its operations.

The model runs on PyTorch's fake tensors, which have shapes but no data, so the trace follows whatever the model does.
A deep model is traced at two small depths, from which memory and operations follow exactly, because its blocks are
alike and so are its rounds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mom.cost.machine import is_mixed, matmul_dtype, unified_precision, weight_dtype
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.assembly import Stage
from mom.model.blocks import Block
from mom.model.dispatch import even_groups

TRACED_BLOCKS, TRACED_ROUNDS = 2, 2
"""Plain bottom blocks and rounds that are traced of a deeper model; one more of each gives the growth."""


class Operation(NamedTuple):
    """An operation of a step.

    Attributes:
        flops: FLOPs of its matmuls.
        bytes: bytes that it reads and writes.
        backward: whether it is one of the backward pass.
        grouped: whether it is one of several matmuls, for a module each, that a GPU runs as one.
    """

    flops: float
    bytes: float
    backward: bool
    grouped: bool = False


@dataclasses.dataclass(frozen=True)
class StepTrace:
    """A training step's memory in bytes, and its operations.

    Attributes:
        gradients: the gradients of all parameters.
        kept: tensors that the forward pass keeps for the backward pass.
        peak: the most that gradients, kept tensors and buffers take at a time.
        gradients_at_peak: the gradients that exist at the peak.
        groups: operations, each group with how often it occurs.
    """

    gradients: float
    kept: float
    peak: float
    gradients_at_peak: float
    groups: tuple[tuple[float, tuple[Operation, ...]], ...]

    @property
    def activations_at_peak(self) -> float:
        """Kept tensors and buffers at the peak."""
        return self.peak - self.gradients_at_peak

    def total(self, seconds: Callable[[Operation], float]) -> float:
        """Sum a function of the operations over the step."""
        return sum(times * sum(map(seconds, operations)) for times, operations in self.groups)


def trace_step(
    config: MoMConfig, batch_size: int, length: int, precision: str | int, *, checkpointing: bool = False
) -> StepTrace:
    """Trace the forward and backward pass of a training step; a later call with the same arguments is free.

    Args:
        config: the model's configuration.
        batch_size: B, sequences.
        length: T, tokens of a sequence.
        precision: ``trainer.precision``.
        checkpointing: ``trainer.activation_checkpointing``.
    """

    key = contents(config), batch_size, length, unified_precision(precision), checkpointing
    if key not in _traces:
        _traces[key] = _extrapolated(config, batch_size, length, precision, checkpointing)
    return _traces[key]


_traces: dict[tuple[Any, ...], StepTrace] = {}


def contents(config: MoMConfig) -> str:
    """Return all that a configuration holds, to remember by it what follows from it."""
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def _extrapolated(
    config: MoMConfig, batch_size: int, length: int, precision: str | int, checkpointing: bool
) -> StepTrace:
    """Trace a step, or three of a shallower model."""
    least = {"num_bottom_blocks": TRACED_BLOCKS, "num_rounds": TRACED_ROUNDS if config.num_stages else 0}
    counts = {name: getattr(config, name) for name in least}
    deep = {name: count for name, count in least.items() if counts[name] > count + 1 and count}
    model = _Model(
        config, counts | {name: count + 1 for name, count in deep.items()}, precision, checkpointing
    )
    base = model.trace(batch_size, length, **deep)
    grown = {
        name: model.trace(batch_size, length, **{**deep, name: count + 1}) for name, count in deep.items()
    }
    more = {name: counts[name] - deep[name] for name in grown}
    segments = [
        peak + sum(more[name] * (trace.aligned(base)[i] - peak) for name, trace in grown.items())
        for i, peak in enumerate(base.segments)
    ]
    at_peak = max(range(len(segments)), key=segments.__getitem__)

    def extrapolated(value: Callable[[_Trace], float]) -> float:
        return value(base) + sum(more[name] * (value(trace) - value(base)) for name, trace in grown.items())

    # Rounds share their modules, so gradients do not grow with them, but one more round can move the peak past them.
    gradients_at_peak = base.gradient_bytes[at_peak] + sum(
        (trace.aligned_gradients(base)[at_peak] - base.gradient_bytes[at_peak])
        * (1 if name == "num_rounds" else more[name])
        for name, trace in grown.items()
    )
    groups = [(1.0 - sum(more.values()), tuple(base.operations))]
    groups += [(float(more[name]), tuple(trace.operations)) for name, trace in grown.items()]
    return StepTrace(
        gradients=extrapolated(lambda trace: trace.gradients),
        kept=extrapolated(lambda trace: trace.kept),
        peak=segments[at_peak],
        gradients_at_peak=gradients_at_peak,
        groups=tuple(groups),
    )


@dataclasses.dataclass
class _Trace:
    """A traced step.

    Attributes:
        gradients: bytes of all gradients.
        kept: bytes that are alive at the end of the forward pass.
        segments: the most bytes alive in the forward pass with the head, and then in the backward pass of each block
            and stage, the last first.
        gradient_bytes: for each segment, the gradients that exist at its peak.
        operations: all operations.
    """

    gradients: float
    kept: float
    segments: list[float]
    gradient_bytes: list[float]
    operations: list[Operation]

    def aligned(self, base: _Trace) -> list[float]:
        return _without_middle(self.segments, len(base.segments))

    def aligned_gradients(self, base: _Trace) -> list[float]:
        return _without_middle(self.gradient_bytes, len(base.segments))


def _without_middle(values: list[float], count: int) -> list[float]:
    """Omit the second of the bottom blocks, which come last, if there is a segment more than ``count``."""
    return values if len(values) == count else [*values[:-2], values[-1]]


class _Recorder(TorchDispatchMode):
    """Follows the allocations, the releases and the operations of fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0.0
        self.segments: list[float] = [0.0]
        self.peak_numbers = [0]
        self.operations: list[Operation] = []
        self.backward = False
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._next = itertools.count(1)

    def add(self, tensor: Tensor, size: int | None = None) -> None:
        """Count a tensor's memory once; tensors that exist before the step count 0."""
        storage = tensor.untyped_storage()
        if storage in self.numbers:
            return
        size = storage.nbytes() if size is None else size
        self.numbers[storage] = next(self._next)
        self.live += size
        weakref.finalize(storage, self._release, size)
        if self.live > self.segments[-1]:
            self.segments[-1], self.peak_numbers[-1] = self.live, self.numbers[storage]

    def _release(self, size: int) -> None:
        self.live -= size

    def begin_segment(self, *_: object) -> None:
        """Start the backward pass of another block or stage."""
        self.segments.append(self.live)
        self.peak_numbers.append(next(self._next))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # which autograd asks for most often of all
            return args[0].fake_device
        # What is written to a given tensor allocates nothing and has its shape, which fake tensors would infer slowly.
        out = _written(func, args, kwargs or {})
        out = func(*args, **(kwargs or {})) if out is None else out
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            self.add(tensor, 0)
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        new = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in known]
        for tensor in new:
            self.add(tensor)
        if new or func._schema.is_mutable:
            moved = sum(_num_bytes(tensor) for tensor in (*inputs, *outputs))
            flops = _flops(func, args, kwargs or {}, out)
            grouped = func in (torch.ops.aten.addmm.out, torch.ops.aten.mm.out)
            self.operations.append(Operation(flops, moved, self.backward, grouped))
        return out


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the tensor that an operation writes to and returns; ``None`` if it returns another."""
    if "out" in kwargs:
        return kwargs["out"]
    in_place = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
    return args[0] if in_place and func._schema.name.endswith("_") else None


def _num_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's distinct elements."""
    distinct = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(distinct) * tensor.element_size()


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    """Return the FLOPs of an operation's matmuls, 0 if it has none; no row counts as SKIP."""
    packet, aten = func.overloadpacket, torch.ops.aten
    if packet is aten.addmm_:
        packet = aten.addmm
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3])) * _causal(args, kwargs, 4)
    if packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])) * _causal(args, kwargs, 7)
    if packet not in flop_registry:
        return 0.0
    return float(flop_registry[packet](*args, **kwargs, out_val=out))


def _causal(args: tuple[Any, ...], kwargs: dict[str, Any], position: int) -> float:
    """Return the fraction of the scores that an attention computes."""
    is_causal = args[position] if len(args) > position else kwargs.get("is_causal", False)
    return 0.5 if is_causal else 1.0


class _Model:
    """A model of fake tensors, of which as many bottom blocks and rounds run as are asked for.

    Args:
        config: the model's configuration, also of what depends on the number of rounds, such as folded norms.
        most: the most bottom blocks and rounds that will be traced.
        precision: ``trainer.precision``.
        checkpointing: ``trainer.activation_checkpointing``.
    """

    def __init__(
        self, config: MoMConfig, most: dict[str, int], precision: str | int, checkpointing: bool
    ) -> None:
        self._most, self._mixed, self._dtype = most, is_mixed(precision), matmul_dtype(precision)
        self._fake = FakeTensorMode()
        config = MoMConfig.from_dict(config.to_dict())
        with self._fake, torch.device("cpu"), _default_dtype(weight_dtype(precision)):
            self._model = MoMForCausalLM(config).train()
        self._bottom = self._model.model.bottom
        if checkpointing:
            self._model.gradient_checkpointing_enable()

    def trace(self, batch_size: int, length: int, **depth: int) -> _Trace:
        """Trace a step with these numbers of bottom blocks and rounds, by default the most."""
        depth = self._most | depth
        model, recorder = self._model, _Recorder()
        model.zero_grad()
        model.model.bottom = self._bottom[: depth["num_bottom_blocks"]]
        model.config.num_rounds = depth["num_rounds"]
        for stage in model.model.stages:
            stage.num_rounds = depth["num_rounds"]
        with self._fake:
            ids = torch.zeros(batch_size, length, dtype=torch.int64)
            for tensor in (*model.parameters(), *model.buffers(), ids):
                recorder.add(tensor, 0)
            with _segments(model, recorder), even_groups(), recorder:
                with torch.autocast("cpu", self._dtype, enabled=self._mixed):
                    loss = model(input_ids=ids, labels=ids, output_logits=False, output_routing=True).loss
                kept = recorder.live
                recorder.backward = True
                loss.backward()
        gradients = [
            parameter.grad.untyped_storage() for parameter in model.parameters() if parameter.grad is not None
        ]
        return _Trace(
            gradients=sum(storage.nbytes() for storage in gradients),
            kept=kept,
            segments=recorder.segments,
            gradient_bytes=[
                sum(storage.nbytes() for storage in gradients if recorder.numbers.get(storage, 0) <= number)
                for number in recorder.peak_numbers
            ],
            operations=recorder.operations,
        )


@contextmanager
def _segments(model: MoMForCausalLM, recorder: _Recorder) -> Iterator[None]:
    """Start a segment where the backward pass reaches the output of a plain block or a stage."""

    def after(module: torch.nn.Module, inputs: object, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        if stream.requires_grad:
            stream.register_hook(recorder.begin_segment)

    handles = [
        part.register_forward_hook(after) for part in model.modules() if isinstance(part, Block | Stage)
    ]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Build parameters of a dtype; fake ones cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
