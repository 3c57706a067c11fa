"""Watching FRAMER's diagnostics for features that have become all alike."""

from __future__ import annotations

from framer.analysis.history import LayerMetrics

COLLAPSED = 0.999
"""Similarity to the last block above which a layer counts as equal to it."""
PATIENCE = 100
"""Steps in a row that are no longer chance."""


class CollapseWatch:
    """Notices when every layer equals the last block in both bands, in 100 steps in a row.

    There is then nothing left for the last block to teach, and the contrastive losses can no longer tell layers apart.
    """

    def __init__(self) -> None:
        self._steps = 0

    def observe(self, layers: LayerMetrics) -> str | None:
        """Takes in a step.

        Returns:
            A warning in the step that fills the hundred, once until some layer differs again; otherwise None.
        """
        lowest = min([*layers.align_lf, *layers.align_hf])
        self._steps = self._steps + 1 if lowest > COLLAPSED else 0
        if self._steps != PATIENCE:
            return None
        return (
            f"for {PATIENCE} steps every layer's features have had a similarity above {COLLAPSED} to the last block's: "
            "the layers have become alike, and FRAMER has nothing left to teach; lower framer.weight, or check what "
            "the model puts out"
        )
