"""Every metric's name, in the sections of the dashboard; docs/metrics.md says what each is."""

from __future__ import annotations

DEPTH = (
    "depth/effective",
    "depth/effective_std",
    "depth/effective_q10",
    "depth/effective_q50",
    "depth/effective_q90",
    "depth/effective_attention",
    "depth/effective_ffn",
    "depth/weighted",
    "depth/modules_per_token",
    "depth/graph",
)
COMPUTE = ("compute/flops_per_token", "compute/share_of_nominal")
_OF_A_POOL = (
    "skip_rate",
    "skip_share",
    "load_max_over_mean",
    "dead_fraction",
    "entropy",
    "first_weight",
    "balance_loss",
    "agreement",
)
ROUTING = {
    f"routing/{pool}": tuple(f"routing/{pool}/{name}" for name in _OF_A_POOL) for pool in ("attention", "ffn")
}
PATHS = ("routing/paths_per_thousand_tokens",)


TRAINING = {
    "train": (
        "train/loss",
        "train/lm_loss",
        "train/balance_loss",
        "train/z_loss",
        "train/depth_loss",
        "train/routing_loss",
    ),
    "depth": DEPTH,
    "compute": COMPUTE,
    "routing": PATHS,
    **{section: (*names, f"{section}/gradient_norm") for section, names in ROUTING.items()},
    "throughput": (
        "throughput/tokens_per_second",
        "throughput/tokens",
        "throughput/training_flops",
        "throughput/flops",
        "throughput/mfu",
    ),
    "learning_rate": (
        "learning_rate/matrices",
        "learning_rate/vectors",
        "learning_rate/router_matrices",
        "learning_rate/router_vectors",
    ),
}
"""Section → names that a pre-training logs at its steps."""

VALIDATION = {
    "val": ("val/loss", "val/perplexity", "val/bits_per_byte"),
    **{
        f"val/{section}": tuple(f"val/{name}" for name in names)
        for section, names in (("depth", DEPTH), ("compute", COMPUTE), ("routing", PATHS), *ROUTING.items())
    },
}
"""Section → names that a pre-training logs at its validations."""

SECTIONS = {"val": VALIDATION["val"], **TRAINING, **VALIDATION}
"""All of them, in the dashboard's order."""

SUMMARY = ("compute/forward_memory",)
"""Names that stand in a pre-training's ``summary.json`` alone, as they never change."""

FIGURES = (
    "figures/module_use",
    "figures/module_flow",
    "figures/depth_distribution",
    "figures/depth_by_frequency",
    "figures/depth_by_loss",
    "figures/use_over_time",
)
SAMPLES = "samples"
