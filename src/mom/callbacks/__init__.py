"""Lightning callbacks: routing statistics, throughput, checkpoints, progress."""

from mom.callbacks.balance_bias import BalanceBias
from mom.callbacks.checkpoints import FinalValidation, LastCheckpoint
from mom.callbacks.effective_depth import EffectiveDepth
from mom.callbacks.figures import RoutingFigures
from mom.callbacks.non_finite import NonFinite
from mom.callbacks.progress import StepProgressBar
from mom.callbacks.ranks import RankAgreement
from mom.callbacks.resume import RandomState, StoppedEarly
from mom.callbacks.router_noise import RouterNoise
from mom.callbacks.router_prior_decay import RouterPriorDecay
from mom.callbacks.routing_paths import RoutingPaths
from mom.callbacks.routing_statistics import RoutingStatistics
from mom.callbacks.samples import GeneratedSamples
from mom.callbacks.throughput import ThroughputMonitor
from mom.callbacks.top_k_growth import TopKGrowth

__all__ = [
    "BalanceBias",
    "EffectiveDepth",
    "FinalValidation",
    "GeneratedSamples",
    "LastCheckpoint",
    "NonFinite",
    "RandomState",
    "RankAgreement",
    "RouterNoise",
    "RouterPriorDecay",
    "RoutingFigures",
    "RoutingPaths",
    "RoutingStatistics",
    "StepProgressBar",
    "StoppedEarly",
    "ThroughputMonitor",
    "TopKGrowth",
]
