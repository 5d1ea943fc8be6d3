"""The configuration of a Mixture-of-Modules model, checked on construction."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from mom.model.layout import entries_as_list
from mom.model.options import ModelOptions
from mom.model.pools import PoolKind  # noqa: F401 (registers the built-in kinds)
from mom.model.registry import InvalidOption
from mom.model.routers import RouterKind  # noqa: F401 (as above)
from mom.model.rules import check_options


class MoMConfig(ModelOptions, PreTrainedConfig):
    """The options of a Mixture-of-Modules model (Gong et al. 2024, arXiv 2407.06677).

    The order of computation is: embeddings, ``num_bottom_blocks`` plain blocks, then for each of ``num_stages`` stages
    ``num_rounds`` rounds of assembly over the stage's pools followed by a plain anchor block if ``anchors``, then
    ``num_top_blocks`` plain blocks, the final norm, and the output head. A plain transformer has ``num_stages=0`` and
    all its layers as bottom blocks.

    Args:
        pools: the pools of a stage in the order of a round: a list of kinds, ``[attention, ffn]`` by default, or a
            mapping from names to ``{kind, num_modules, top_k, skip, schedule}``, each of which has a default.
        vocabulary: a hash of the tokens that the IDs mean (:func:`mom.data.tokenizer.vocabulary_identity`), ``None`` if
            unknown. Training records it, and tokenizers are checked against it.
        others: the options of :class:`mom.model.options.ModelOptions`, and those that the router kind declares.

    Raises:
        InvalidOption: for the first invalid option; a ``ValueError``.
    """

    model_type = "mom"
    # Everything but the predictions: `Trainer` would otherwise hand the losses to `compute_metrics`.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "routing",
        "lm_loss",
        "task_loss",
        "balance_loss",
        "z_loss",
        "depth_loss",
        "capacity_loss",
    ]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "max_position_embeddings": "max_positions",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_heads",
    }

    vocabulary: str | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # Written to config.json for other libraries; here it follows from the other options, which may be replaced.
        kwargs.pop("num_hidden_layers", None)
        kwargs.pop("module_dropout_per", None)
        if dropped := kwargs.pop("module_dropout", 0.0):
            raise InvalidOption("module_dropout", dropped, "must be 0: version 0.2 removed it")
        if (pools := kwargs.pop("pools", None)) is not None:  # null means the default, as in a request
            self.pool_specs = pools
        PreTrainedConfig.__post_init__(self, **kwargs)
        check_options(self)

    # The names of other libraries for sizes that follow from the options.

    @property
    def num_hidden_layers(self) -> int:
        """The depth of the graph, ``graph_depth``."""
        return self.graph_depth

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        if value != self.graph_depth:
            rule = f"must be {self.graph_depth}, which follows from the numbers of blocks, stages, and rounds"
            raise InvalidOption("num_hidden_layers", value, rule)

    @property
    def intermediate_size(self) -> int:
        """Hidden width of a feed-forward; to set it is to set ``d_ffn``."""
        return self.ffn_width

    @intermediate_size.setter
    def intermediate_size(self, value: int) -> None:
        self.d_ffn = value

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.num_heads

    @property
    def hidden_act(self) -> str:
        """Activation of a feed-forward."""
        return "silu" if self.components.gated else "gelu_pytorch_tanh"

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, for ``config.json``."""
        fields = super().to_dict() | {"num_hidden_layers": self.num_hidden_layers}
        return fields | {"pools": entries_as_list(fields.pop("pool_specs"))}
