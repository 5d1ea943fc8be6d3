"""transformers' common model tests for every head, both blocks, K of 1 and 2, with and without SKIP."""

from __future__ import annotations

import os
import sys
import unittest
from typing import Any

import pytest
import torch

from mom.model import MoMConfig, MoMForCausalLM, MoMForSequenceClassification, MoMModel

if "MOM_TRANSFORMERS_TESTS" not in os.environ:
    pytest.skip("transformers' own tests run by `make transformers-tests`", allow_module_level=True)
sys.path.insert(0, os.environ["MOM_TRANSFORMERS_TESTS"])

from transformers.models.auto import modeling_auto
from transformers_tests import test_modeling_common as common
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_training_mixin import TrainingTesterMixin

# By these tables, the tests know which labels a head takes.
modeling_auto.MODEL_MAPPING_NAMES["mom"] = "MoMModel"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["mom"] = "MoMForSequenceClassification"


class Tester:
    """What the common tests ask for: sizes, a configuration, and inputs."""

    __test__ = False

    batch_size, seq_length = 3, 7
    is_training = True
    causal_lm_class = MoMForCausalLM

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        config = self.get_config()
        self.hidden_size, self.num_hidden_layers = config.hidden_size, config.num_hidden_layers
        self.num_attention_heads, self.vocab_size = config.num_heads, config.vocab_size

    def get_config(self) -> MoMConfig:
        fields = {
            "vocab_size": 99,
            "max_positions": 64,
            "d_model": 32,
            "num_heads": 4,
            "d_ffn": 37,
            "num_bottom_blocks": 1,
            "num_top_blocks": 0,
            "num_rounds": 2,
            "num_attention_modules": 3,
            "num_ffn_modules": 3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return MoMConfig(**fields, **self.options)

    def prepare_config_and_inputs_for_common(self) -> tuple[MoMConfig, dict[str, torch.Tensor]]:
        shape = self.batch_size, self.seq_length
        ids = torch.randint(3, self.vocab_size, shape)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.long)}


class Models(common.ModelTesterMixin, common.GenerationTesterMixin, TrainingTesterMixin):
    """The common tests of our three heads."""

    all_model_classes = (MoMModel, MoMForCausalLM, MoMForSequenceClassification)
    model_tester: Any = None
    options: dict[str, Any]

    def setUp(self) -> None:
        self.model_tester = Tester(self.options)

    def test_config(self) -> None:
        """Run transformers' tests of configurations."""
        ConfigTester(self, config_class=MoMConfig, **self.options).run_common_tests()

    @unittest.skip("a model with every part has four blocks")
    def test_num_layers_is_small(self) -> None: ...


def add_cases() -> None:
    """Define a test case for each configuration."""
    for block in ("gpt2", "llama"):
        for top_k in (1, 2):
            for skip in (True, False):
                name = f"{block}_k{top_k}_{'skip' if skip else 'no_skip'}"
                # With a balance bias, a model has a buffer that stays in float32.
                options = {"block": block, "top_k": top_k, "skip": skip, "balance_bias_rate": 0.01 * skip}
                globals()[name] = type(
                    name, (Models, unittest.TestCase), {"options": options, "__module__": __name__}
                )


add_cases()
