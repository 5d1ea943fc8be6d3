"""Checkpoints of the authors' released code: `config.json` and weights under its own names."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mom.errors import RequestError
from mom.interop.layers import AttentionWeights, FFNWeights, Layer, copy_affine, write_block, write_module
from mom.model import MoMConfig, MoMForCausalLM
from mom.model.assembly import Stage
from mom.model.router import Router

# Fields of `config.json` whose other values the authors' model class ignores or that we do not compute.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
_ROUTER_TYPES = {
    "gru_softmax": ("gru", "softmax"),
    "gru": ("gru", "identity"),
    "naive_softmax": ("mlp", "softmax"),
    "naive": ("mlp", "identity"),
}


def load_authors_checkpoint(directory: str | Path) -> MoMForCausalLM:
    """Load a checkpoint of the authors' code; the model computes what theirs computes.

    Args:
        directory: holds ``config.json`` and ``model.safetensors`` (whole or in shards with an index) or
            ``pytorch_model.bin``.

    Returns:
        The model in float32, evaluation mode.

    Raises:
        RequestError: a missing or damaged file, or an option that is not supported, named.
    """
    directory = Path(directory)
    theirs = _read_config(directory)
    config = _translate(theirs)
    model = MoMForCausalLM(config)
    if model.device.type == "meta":
        return model.eval()
    tensors = _Tensors(_read_weights(directory), directory)
    with torch.no_grad():
        _fill(model, tensors)
    tensors.check_all_read()
    return model.eval()


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError("checkpoint", directory, "a folder with a config.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError("checkpoint", path, f"a JSON file ({error})") from None
    if not isinstance(theirs, dict) or "routing_top_k" not in theirs:
        raise RequestError(
            "checkpoint", path, "a config.json as the authors' code saves it (no routing_top_k)"
        )
    return theirs


def _translate(theirs: Mapping[str, Any]) -> MoMConfig:
    """Their options to ours."""
    for name, allowed in _REQUIRED_VALUES.items():
        if theirs.get(name, allowed[0]) not in allowed:
            raise RequestError(f"checkpoint.{name}", theirs[name], f"one of {', '.join(map(str, allowed))}")
    kind = theirs.get("router_type")
    if kind not in _ROUTER_TYPES:
        raise RequestError("checkpoint.router_type", kind, f"one of {', '.join(_ROUTER_TYPES)}")
    router, score_function = _ROUTER_TYPES[kind]
    num_attention, num_ffn = theirs["num_attn"], theirs["num_ffn"]
    if theirs.get("bind_ffn_attn") and num_attention != num_ffn:
        raise RequestError("checkpoint.bind_ffn_attn", True, "false, or num_attn equal to num_ffn")
    skip = bool(theirs.get("enable_pause", False))
    # Their routers have as many outputs as the larger pool (`naive`: as the feed-forward pool) and one to pause.
    outputs = (max(num_attention, num_ffn) if router == "gru" else num_ffn) + int(skip)
    if outputs < num_attention:
        raise RequestError(
            "checkpoint.num_attn", num_attention, f"at most num_ffn ({num_ffn}) with router_type {kind}"
        )
    if 1 in (num_attention, num_ffn):
        raise RequestError(
            "checkpoint.num_attn" if num_attention == 1 else "checkpoint.num_ffn",
            1,
            "2 or more; for one module their code builds a block without a router",
        )
    if not skip and num_attention != num_ffn:
        # Without a pause output the outputs past a pool's modules still do nothing, so they are SKIP all the same.
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
        # They renormalize the chosen softmax scores at every K, but not where all paths are taken.
        normalize_weights=score_function == "softmax" and not all_paths,
        router_prior="none",
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
    """Copy every weight; `transformer.h.i` counts bottom blocks, stages with their anchors, and top blocks."""
    body = model.model
    body.embedding.token.weight.copy_(tensors.take("transformer.wte.weight"))
    body.embedding.position.weight.copy_(tensors.take("transformer.wpe.weight"))
    index = 0
    for block in body.bottom:
        write_block(block, _layer(tensors, index))
        index += 1
    for stage in body.stages:
        _fill_stage(stage, tensors, f"transformer.h.{index}")
        index += 1
        if stage.anchor is not None:
            write_block(stage.anchor, _layer(tensors, index))
            index += 1
    for block in body.top:
        write_block(block, _layer(tensors, index))
        index += 1
    copy_affine(body.norm, tensors.take("transformer.ln_f.weight"), tensors.take("transformer.ln_f.bias"))


def _fill_stage(stage: Stage, tensors: _Tensors, prefix: str) -> None:
    for module in range(stage.attention.pool.num_modules):
        write_module(stage.attention.pool, module, _attention(tensors, prefix, f".{module}"))
    for module in range(stage.ffn.pool.num_modules):
        write_module(stage.ffn.pool, module, _ffn(tensors, prefix, f".{module}"))
    _fill_router(stage.attention.router, tensors, f"{prefix}.mot_attn.router")
    _fill_router(stage.ffn.router, tensors, f"{prefix}.mot_ffn.router")


def _fill_router(router: Router, tensors: _Tensors, source: str) -> None:
    if router.kind.name == "gru":
        router.cell.weight_ih.copy_(tensors.take(f"{source}.x2h.weight"))
        router.cell.bias_ih.copy_(tensors.take(f"{source}.x2h.bias"))
        router.cell.weight_hh.copy_(tensors.take(f"{source}.h2h.weight"))
        router.cell.bias_hh.copy_(tensors.take(f"{source}.h2h.bias"))
        output = f"{source}.router"
    else:
        router.input.weight.copy_(tensors.take(f"{source}.router.0.weight"))
        router.input.bias.copy_(tensors.take(f"{source}.router.0.bias"))
        output = f"{source}.router.2"
    for kind in ("weight", "bias"):
        theirs = tensors.take(f"{output}.{kind}")
        ours = getattr(router.output, kind)
        # A router of theirs without a pause output has no row for SKIP; ours may never choose it.
        ours.zero_()
        ours[: theirs.shape[0]].copy_(theirs)


def _layer(tensors: _Tensors, index: int) -> Layer:
    prefix = f"transformer.h.{index}"
    return Layer(_attention(tensors, prefix, ""), _ffn(tensors, prefix, ""))


def _attention(tensors: _Tensors, prefix: str, module: str) -> AttentionWeights:
    at = f"{prefix}.mot_attn"
    return AttentionWeights(
        norm_weight=tensors.take(f"{at}.attention_layernorm{module}.weight"),
        norm_bias=tensors.take(f"{at}.attention_layernorm{module}.bias"),
        qkv_weight=tensors.take(f"{at}.c_attn{module}.weight"),
        qkv_bias=tensors.take(f"{at}.c_attn{module}.bias"),
        out_weight=tensors.take(f"{at}.c_proj{module}.weight"),
        out_bias=tensors.take(f"{at}.c_proj{module}.bias"),
    )


def _ffn(tensors: _Tensors, prefix: str, module: str) -> FFNWeights:
    at = f"{prefix}.mot_ffn"
    return FFNWeights(
        norm_weight=tensors.take(f"{at}.ffn_layernorm{module}.weight"),
        norm_bias=tensors.take(f"{at}.ffn_layernorm{module}.bias"),
        fc_weight=tensors.take(f"{at}.c_fc{module}.weight"),
        fc_bias=tensors.take(f"{at}.c_fc{module}.bias"),
        proj_weight=tensors.take(f"{at}.c_proj{module}.weight"),
        proj_bias=tensors.take(f"{at}.c_proj{module}.bias"),
    )


class _Tensors:
    """A checkpoint's tensors by name, remembering which were read."""

    def __init__(self, tensors: dict[str, Tensor], directory: Path) -> None:
        self._tensors = tensors
        self._directory = directory
        self._read = {"lm_head.weight"}  # tied to the token embedding, stored by some versions

    def take(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise RequestError(
                "checkpoint", self._directory, f"a file with the tensor {name}, as config.json needs"
            )
        self._read.add(name)
        return self._tensors[name].float()

    def check_all_read(self) -> None:
        """A tensor that nothing asked for means that config.json describes another model."""
        left = sorted(set(self._tensors) - self._read)
        if left:
            raise RequestError(
                "checkpoint",
                self._directory,
                f"no tensors beyond config.json's (found {left[0]}, {len(left)} in all)",
            )


def _read_weights(directory: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = [name for name in ("model.safetensors", "pytorch_model.bin") if (directory / name).exists()][
            :1
        ]
    if not files:
        raise RequestError("checkpoint", directory, "a folder with model.safetensors or pytorch_model.bin")
    tensors: dict[str, Tensor] = {}
    for name in files:
        path = directory / name
        try:
            if path.suffix == ".safetensors":
                tensors |= load_file(path)
            else:
                tensors |= torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise RequestError(
                "checkpoint", path, f"a whole weight file ({str(error).splitlines()[0]})"
            ) from None
    return tensors
