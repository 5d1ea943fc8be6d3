"""Invalid configurations are rejected with a one-line message that names the field."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mom.model import MoMConfig, MoMForCausalLM
from mom.model.declaration import declared
from mom.model.options import ModelOptions, options_of, options_table
from tests.helpers.models import small_config, small_model, tokens

GOLDEN_CONFIG = Path(__file__).parents[1] / "golden" / "config_0.1.json"
NUMBERS = [name for name, option in declared(ModelOptions).items() if "number" in option.allowed()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model must be an integer of at least 1, got 0"),
        ({"d_model": 18, "num_heads": 4}, "d_model must be a multiple of num_heads (4), got 18"),
        ({"block": "bert"}, "block must be one of gpt2, llama, got bert"),
        (
            {"block": "llama", "d_model": 6, "num_heads": 2},
            "d_model must be an even multiple of num_heads (2) for rotary positions, got 6",
        ),
        ({"qk_norm": 1}, "qk_norm must be true or false, got 1"),
        ({"rope_theta": 0}, "rope_theta must be a number greater than 0, got 0"),
        ({"rope_theta": math.inf}, "rope_theta must be a number greater than 0, got inf"),
        ({"num_rounds": -1}, "num_rounds must be an integer of at least 1, got -1"),
        ({"num_ffn_modules": 2.5}, "num_ffn_modules must be an integer of at least 1, got 2.5"),
        ({"num_bottom_blocks": True}, "num_bottom_blocks must be an integer of at least 0, got true"),
        (
            {"top_k": 5},
            "top_k must be between 1 and 4, the choices that every round of the attention pool has",
        ),
        ({"top_k": 0}, "top_k must be an integer of at least 1 or all, got 0"),
        ({"top_k": "most"}, "top_k must be an integer of at least 1 or all, got most"),
        ({"schedule": "layerwise", "top_k": 3}, "top_k must be between 1 and 2"),
        ({"skip": False, "top_k": 4}, "top_k must be between 1 and 3"),
        (
            {"router": "lstm"},
            "router must be one of embedding, gru, linear, mlp, oracle, random, sequential, got lstm",
        ),
        (
            {"router": "gruu"},
            "router must be one of embedding, gru, linear, mlp, oracle, random, sequential (did you mean gru?)",
        ),
        ({"skipped_kv": "drop"}, "skipped_kv must be one of zero, mask, got drop"),
        ({"skip_rule": "last"}, "skip_rule must be one of share, first, got last"),
        ({"schedule": "some"}, "schedule must be one of all, layerwise, grouped, got some"),
        ({"normalize_weights": 1}, "normalize_weights must be true, false, or auto, got 1"),
        ({"temperature": 0.0}, "temperature must be a number greater than 0, got 0.0"),
        ({"dropout": 1.0}, "dropout must be a number of at least 0 and less than 1, got 1.0"),
        ({"anchors": 2}, "anchors must be true or false, got 2"),
        (
            {"router": "random", "router_prior": "ordered"},
            "router_prior must be none with router random, which does not learn, got ordered",
        ),
        (
            {"score_function": "identity", "normalize_weights": True},
            "normalize_weights must be auto or false with score_function identity, whose scores can sum to 0, got true",
        ),
        ({"module_dropout": 0.1}, "module_dropout must be 0: version 0.2 removed it, got 0.1"),
        ({"balance_bias_rate": -0.1}, "balance_bias_rate must be a number of at least 0, got -0.1"),
        (
            {"router": "sequential", "balance_bias_rate": 0.1},
            "balance_bias_rate must be 0 with router sequential, which does not learn, got 0.1",
        ),
        (
            {"ffn_top_k": 5},
            "ffn_top_k must be between 1 and 4, the choices that every round of the ffn pool",
        ),
        ({"ffn_top_k": "most"}, "ffn_top_k must be an integer of at least 1, all, or null, got most"),
        ({"absorbing_skip": 1}, "absorbing_skip must be true or false, got 1"),
        (
            {"absorbing_skip": True},
            "absorbing_skip must be false if every token runs a module in every step",
        ),
        (
            {"absorbing_skip": True, "top_k": 1, "skip": False},
            "absorbing_skip must be false if every token",
        ),
        ({"absorbing_skip": True, "top_k": 1, "router": "sequential"}, "absorbing_skip must be false if"),
    ],
)
def test_errors_name_field_value_and_allowed_values(changes, message):
    with pytest.raises(ValueError) as error:
        small_config(**changes)
    assert str(error.value).startswith(message)


def test_graph_depth_and_its_alias():
    config = small_config(num_stages=2, num_rounds=3, anchors=True)
    assert config.graph_depth == config.num_hidden_layers == 1 + 2 * (3 + 1) + 1
    assert small_config(num_stages=0).graph_depth == 2
    assert (config.hidden_size, config.num_attention_heads) == (16, 2)


def test_round_trip_through_a_dictionary():
    config = small_config(top_k="all", ffn_schedule="grouped", ffn_skip=False, normalize_weights=False)
    again = MoMConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_a_configuration_of_version_0_1_loads_with_all_its_values():
    """Defaults have changed since; the file contains every value, including the defaults of its time."""
    fields = json.loads(GOLDEN_CONFIG.read_text())
    config = MoMConfig.from_dict(dict(fields))
    assert (config.temperature, config.router_prior, config.router_dim) == (1.0, "none", 8)
    assert MoMConfig().balance_coefficient != config.balance_coefficient == 0.01
    removed = {"module_dropout", "module_dropout_per"}
    different = {name for name, value in config.to_dict().items() if name in fields and value != fields[name]}
    assert different <= {"transformers_version"}
    assert fields.keys() - config.to_dict().keys() == removed


def test_every_option_is_written_to_config_json(tmp_path):
    MoMConfig().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.items() >= MoMConfig().as_mapping().items()


def test_options_are_checked_without_pytorch():
    code = (
        "import sys, mom.model.pools, mom.model.routers\n"
        "from mom.model.options import options_table\nfrom mom.model.rules import options_from\n"
        "options_from({'top_k': 3, 'router': 'mlp'}), options_table()\n"
        "try:\n    options_from({'top_k': 99})\n"
        "except ValueError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("top_k must be between 1 and 5") and printed.strip().endswith("[]")


def test_the_table_has_every_option():
    table = options_table()
    for group in ("model", "router"):
        for name, option in options_of(group).items():
            assert f"| `{group}.{name}` |" in table and option.help in table


def test_initialization_is_gpt2s_with_residual_projections_scaled_by_depth():
    torch.manual_seed(0)
    config = small_config(d_model=64, num_heads=2, num_rounds=6, initializer_range=0.05)
    model = MoMForCausalLM(config)
    small = 0.05 / math.sqrt(2 * config.graph_depth)
    stage, block = model.model.stages[0], model.model.bottom[0]
    for weight, std in (
        (stage.attention.pool.qkv_weight, 0.05),
        (stage.attention.pool.out_weight, small),
        (stage.ffn.pool.fc_weight, 0.05),
        (stage.ffn.pool.proj_weight, small),
        (stage.anchor.attention.out.weight, small),
        (block.ffn.proj.weight, small),
        (block.ffn.fc.weight, 0.05),
        (model.model.embedding.token.weight, 0.05),
        (stage.ffn.router.cell.weight_ih, 0.05),
    ):
        assert float(weight.std()) == pytest.approx(std, rel=0.1)
    assert float(stage.ffn.pool.norm_weight.min()) == 1 and float(stage.ffn.pool.proj_bias.abs().max()) == 0
    assert model.lm_head.weight is model.model.embedding.token.weight


def test_swiglu_has_as_many_parameters_as_the_feed_forward_it_replaces():
    assert small_config(block="llama", d_model=768, num_heads=12).ffn_width == 2048
    assert small_config(block="llama", d_model=128).ffn_width == 344
    assert small_config(block="llama", d_ffn=20).ffn_width == 20
    assert small_config().ffn_width == 64


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 10**400], ids=["inf", "-inf", "nan", "huge"]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_no_option_takes_a_number_that_is_not_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        small_config(**{name: value})


@pytest.mark.parametrize("top_k", [1, 2, "all"])
def test_raw_scores_are_not_normalized(top_k):
    """Their sum may be 0 or less, so dividing by it gave NaN."""
    for seed in range(10):
        model = small_model(seed, score_function="identity", top_k=top_k)
        ids = tokens(2, 8, seed=seed)
        output = model(input_ids=ids, labels=ids, output_routing=True)
        output.loss.backward()
        assert torch.isfinite(output.logits).all() and torch.isfinite(output.loss)
        step = output.routing[0].ffn
        torch.testing.assert_close(step.weights, step.scores.gather(-1, step.selected))
