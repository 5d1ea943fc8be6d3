"""Load checkpoints of the authors' released code: ``config.json`` and weights under the authors' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mom.errors import UsageError
from mom.interop.hugging_face import check_supported
from mom.interop.layers import affine, read_layer, write_block, write_module
from mom.interop.weights import cannot_load, load_errors, read_fields
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.assembly import RoutedPool, Stage
from mom.runs.files import parse_json

_OPTION = "checkpoint"
# Options of `config.json` that the authors' model ignores or that ours does not support, with the allowed values.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
# The authors' `router_type`: our router and score function.
_ROUTERS = {
    "gru_softmax": ("gru", "softmax"),
    "gru": ("gru", "identity"),
    "naive_softmax": ("mlp", "softmax"),
    "naive": ("mlp", "identity"),
}
# Names of our routers' parameters, and the authors'.
_ROUTER_LAYERS = {
    "gru": {
        "cell.weight_ih": "x2h.weight",
        "cell.bias_ih": "x2h.bias",
        "cell.weight_hh": "h2h.weight",
        "cell.bias_hh": "h2h.bias",
        "output.weight": "router.weight",
        "output.bias": "router.bias",
    },
    "mlp": {
        "input.weight": "router.0.weight",
        "input.bias": "router.0.bias",
        "output.weight": "router.2.weight",
        "output.bias": "router.2.bias",
    },
}
_LAYER = {
    "attention": affine("norm", "{at}.mot_attn.attention_layernorm{module}")
    | affine("qkv", "{at}.mot_attn.c_attn{module}")
    | affine("out", "{at}.mot_attn.c_proj{module}"),
    "ffn": affine("norm", "{at}.mot_ffn.ffn_layernorm{module}")
    | affine("fc", "{at}.mot_ffn.c_fc{module}")
    | affine("proj", "{at}.mot_ffn.c_proj{module}"),
}
_POOLS = {"attention": "mot_attn", "ffn": "mot_ffn"}


def load_authors_checkpoint(directory: str | Path) -> MoMForCausalLM:
    """Load a checkpoint of the authors' code as a model that computes the same logits.

    It supports ``router_type`` ``gru_softmax``, ``gru``, ``naive_softmax``, and ``naive``; pools of different sizes,
    several chunks, and any ``routing_all_possible_path``, ``weighted_qkv``, ``use_ste``, ``enable_pause``, and
    ``require_anchor_layer``. Router outputs beyond the pool's modules mean SKIP. It rejects ``dev`` and ``random``
    routers, pools of one module (for which the authors' code builds a block without a router), and ``naive`` routers
    with more attention than feed-forward modules (for which the authors' code fails).

    Args:
        directory: contains ``config.json`` and ``model.safetensors`` (a single file, or shards with an index) or
            ``pytorch_model.bin``.

    Returns:
        The model in float32, evaluation mode.

    Raises:
        UsageError: a file is missing or damaged, or an option is not supported.
    """
    directory = Path(directory)
    theirs = _read_config(directory)
    with load_errors(directory, _OPTION):
        model = MoMForCausalLM(_translate(theirs))
    if model.device.type == "meta":
        return model.eval()
    tensors = _Tensors(_read_weights(directory), directory)
    with torch.no_grad(), load_errors(directory, _OPTION):
        _fill(model, tensors)
    tensors.check_all_read()
    return model.eval()


def _error(path: Path, reason: str) -> UsageError:
    return cannot_load(path, _OPTION, reason)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise _error(directory, "the folder has no config.json")
    theirs = read_fields(directory, _OPTION)
    if "routing_top_k" not in theirs:
        raise _error(path, "not a config.json of the authors' code (it has no routing_top_k)")
    return theirs


def _translate(theirs: Mapping[str, Any]) -> MoMConfig:
    """Translate the authors' options to ours."""
    kind: Any = theirs.get("router_type")
    options = {name: (theirs.get(name, allowed[0]), allowed) for name, allowed in _SUPPORTED.items()}
    check_supported("checkpoint", options | {"router_type": (kind, tuple(_ROUTERS))})
    router, score_function = _ROUTERS[kind]
    num_attention, num_ffn = theirs["num_attn"], theirs["num_ffn"]
    if theirs.get("bind_ffn_attn") and num_attention != num_ffn:
        raise UsageError(
            f"checkpoint.bind_ffn_attn must be false if num_attn ({num_attention}) and num_ffn ({num_ffn}) differ, "
            "got true"
        )
    skip = bool(theirs.get("enable_pause", False))
    # Their routers have an output for each module of the larger pool (`naive`: of the feed-forward pool), plus pause.
    outputs = (max(num_attention, num_ffn) if router == "gru" else num_ffn) + int(skip)
    if outputs < num_attention:
        raise UsageError(
            f"checkpoint.num_attn must be at most num_ffn ({num_ffn}) with router_type {kind}, got {num_attention}"
        )
    for name, number in (("num_attn", num_attention), ("num_ffn", num_ffn)):
        if number == 1:
            raise UsageError(
                f"checkpoint.{name} must be at least 2, got 1: for one module the authors' code builds a block "
                "without a router"
            )
    if not skip and num_attention != num_ffn:
        # Even without a pause output, the outputs past a pool's modules do nothing, which is SKIP.
        skip_of = {"attention": outputs > num_attention, "ffn": outputs > num_ffn}
    else:
        skip_of = {"attention": skip, "ffn": skip}
    all_paths = bool(theirs.get("routing_all_possible_path", False))
    top_k = min(theirs["routing_top_k"], outputs)
    depth = theirs.get("depth_per_chunk")
    if depth is None:
        depth = int(num_ffn * theirs.get("depth_multiplier", 2.0))
    dropout = theirs.get("resid_pdrop", 0.1)
    return MoMConfig(
        vocab_size=theirs["vocab_size"],
        max_positions=theirs.get("n_positions", 1024),
        d_model=theirs["n_embd"],
        num_heads=theirs["n_head"],
        d_ffn=theirs.get("n_inner"),
        num_bottom_blocks=theirs["num_bottom_layers"],
        num_top_blocks=theirs["num_top_layers"],
        num_stages=theirs["chunks"],
        anchors=bool(theirs.get("require_anchor_layer", True)),
        num_attention_modules=num_attention,
        num_ffn_modules=num_ffn,
        num_rounds=depth,
        top_k="all" if all_paths else top_k,
        skip=skip_of["attention"],
        ffn_skip=skip_of["ffn"],
        num_skip_slots=max(outputs - num_attention, 1),
        ffn_skip_slots=max(outputs - num_ffn, 1),
        router=router,
        router_dim=theirs["router_dim"],
        temperature=float(theirs.get("router_softmax_temperature", 1.0))
        if score_function == "softmax"
        else 1.0,
        score_function=score_function,
        # The authors renormalize the chosen softmax scores for every K, unless all paths are taken.
        normalize_weights=score_function == "softmax" and not all_paths,
        router_prior="none",
        skip_bias=0.0,
        skip_exploration=0.0,
        skip_trials=0.0,
        straight_through=bool(theirs.get("use_ste", False)),
        weight_qkv=bool(theirs.get("weighted_qkv", False)),
        dropout=float(dropout),
        balance_coefficient=float(theirs.get("router_aux_loss_coef", 0.01)),
        layer_norm_epsilon=theirs.get("layer_norm_epsilon", 1e-5),
        initializer_range=theirs.get("initializer_range", 0.02),
        bos_token_id=theirs.get("bos_token_id"),
        eos_token_id=theirs.get("eos_token_id"),
        pad_token_id=theirs.get("pad_token_id"),
    )


def _fill(model: MoMForCausalLM, tensors: _Tensors) -> None:
    """Copy all weights; ``transformer.h.i`` counts bottom blocks, stages with their anchors, and top blocks."""
    body = model.model
    body.embedding.token.weight.copy_(tensors.take("transformer.wte.weight"))
    body.embedding.position.weight.copy_(tensors.take("transformer.wpe.weight"))
    body.norm.weight.copy_(tensors.take("transformer.ln_f.weight"))
    body.norm.bias.copy_(tensors.take("transformer.ln_f.bias"))
    anchored = [part for stage in body.stages for part in (stage, stage.anchor) if part is not None]
    for index, part in enumerate([*body.bottom, *anchored, *body.top]):
        at = f"transformer.h.{index}"
        if isinstance(part, Stage):
            for routed in part.pools:
                name = routed.layout.name
                _fill_pool(routed, name, tensors, at)
                _fill_router(routed, tensors, f"{at}.{_POOLS[name]}.router")
        else:
            write_block(part, read_layer(tensors.take, _LAYER, at=at, module=""))


def _fill_pool(routed: RoutedPool, name: str, tensors: _Tensors, at: str) -> None:
    for module in range(routed.layout.num_modules):
        layer = read_layer(tensors.take, {name: _LAYER[name]}, at=at, module=f".{module}")
        write_module(routed.pool, module, layer[name])


def _fill_router(routed: RoutedPool, tensors: _Tensors, source: str) -> None:
    router = routed.router
    for name, theirs in _ROUTER_LAYERS[router.kind.name].items():
        ours: Tensor = router.get_parameter(name)
        tensor = tensors.take(f"{source}.{theirs}")
        if name.startswith("output."):
            # Routers without a pause output have no row for SKIP; ours never choose it in that case.
            ours.zero_()
            ours = ours[: tensor.shape[0]]
        ours.copy_(tensor)


class _Tensors:
    """The tensors of a checkpoint by name; records which were read."""

    def __init__(self, tensors: dict[str, Tensor], directory: Path) -> None:
        self._tensors = tensors
        self._directory = directory
        self._read = {"lm_head.weight"}  # tied to the token embedding; some versions store it

    def take(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise _error(self._directory, f"config.json requires the tensor {name}, which is missing")
        self._read.add(name)
        return self._tensors[name].float()

    def check_all_read(self) -> None:
        """Reject tensors that were never read: config.json then describes another model."""
        if left := sorted(set(self._tensors) - self._read):
            raise _error(
                self._directory, f"{len(left)} tensors are not part of config.json's model, such as {left[0]}"
            )


def _read_weights(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    tensors: dict[str, Tensor] = {}
    with load_errors(directory, _OPTION):
        if index.exists():
            files = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
        else:
            known = ("model.safetensors", "pytorch_model.bin")
            files = [name for name in known if (directory / name).exists()][:1]
        if not files:
            raise _error(directory, "the folder has neither model.safetensors nor pytorch_model.bin")
        for name in files:
            if Path(name).name != name:
                raise _error(index, f"its files must be in the folder, got {name}")
            with load_errors(directory / name, _OPTION):
                if name.endswith(".safetensors"):
                    tensors |= load_file(directory / name)
                else:
                    tensors |= torch.load(directory / name, map_location="cpu", weights_only=True)
    return tensors
