"""Lightning callbacks: routing statistics and figures, schedules, throughput, checkpoints, exact resume, progress."""

from mom.callbacks.balance_bias import BalanceBias
from mom.callbacks.checkpoints import FinalValidation, LastCheckpoint
from mom.callbacks.effective_depth import EffectiveDepth
from mom.callbacks.figures import RoutingFigures
from mom.callbacks.non_finite import NonFinite
from mom.callbacks.progress import StepProgressBar
from mom.callbacks.ranks import RankAgreement
from mom.callbacks.resume import ExactResume
from mom.callbacks.routing_paths import RoutingPaths
from mom.callbacks.routing_statistics import RoutingStatistics
from mom.callbacks.samples import GeneratedSamples
from mom.callbacks.schedule import Schedule
from mom.callbacks.settling import SettleChoices
from mom.callbacks.throughput import ThroughputMonitor
from mom.callbacks.weight_average import WeightAverage

__all__ = [
    "BalanceBias",
    "EffectiveDepth",
    "ExactResume",
    "FinalValidation",
    "GeneratedSamples",
    "LastCheckpoint",
    "NonFinite",
    "RankAgreement",
    "RoutingFigures",
    "RoutingPaths",
    "RoutingStatistics",
    "Schedule",
    "SettleChoices",
    "StepProgressBar",
    "ThroughputMonitor",
    "WeightAverage",
]
