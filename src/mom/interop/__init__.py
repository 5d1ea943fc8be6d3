"""Other people's models into ours: Hugging Face GPT-2 and Llama, the authors' checkpoints, and plain into MoM."""

from mom.interop.authors import load_authors_checkpoint
from mom.interop.gpt2 import from_gpt2
from mom.interop.llama import from_llama
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
