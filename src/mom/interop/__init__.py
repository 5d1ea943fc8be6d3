"""Conversion of Hugging Face GPT-2, Llama, and Qwen3 and the authors' checkpoints; upcycling; export."""

from mom.interop.authors import load_authors_checkpoint
from mom.interop.hugging_face import from_gpt2, from_llama
from mom.interop.loading import load_classifier, load_model
from mom.interop.upcycling import UpcyclingPlan, plain_config, upcycle

__all__ = [
    "UpcyclingPlan",
    "from_gpt2",
    "from_llama",
    "load_authors_checkpoint",
    "load_classifier",
    "load_model",
    "plain_config",
    "upcycle",
]
