"""What a run shows: similarity against depth, FAW x FAM weights, losses, and the report of it all."""

from framer.analysis.history import StepMetrics, read_metrics
from framer.analysis.losses import plot_losses
from framer.analysis.report import Figure, write_report
from framer.analysis.similarity import DepthSimilarity, depth_similarity, plot_depth_similarity
from framer.analysis.weights import plot_modulation

__all__ = [
    "DepthSimilarity",
    "Figure",
    "StepMetrics",
    "depth_similarity",
    "plot_depth_similarity",
    "plot_losses",
    "plot_modulation",
    "read_metrics",
    "write_report",
]
