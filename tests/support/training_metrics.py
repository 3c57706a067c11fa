"""Lines of ``metrics.jsonl`` as the trainer writes them, for tests of what reads them."""

from __future__ import annotations

from typing import Any


def step_line(step: int, *, align: float, layers: int = 3) -> dict[str, Any]:
    """One step with FRAMER on, all layers alike: FAW 0.8, FAM ``align``."""
    return {
        "step": step,
        "loss": 1.0,
        "noise_loss": 0.9,
        "framer_loss": 0.1,
        "layers": {
            "names": [f"transformer_blocks.{layer}" for layer in range(layers)],
            "weight_lf": [0.8] * layers,
            "weight_hf": [0.8] * layers,
            "align_lf": [align] * layers,
            "align_hf": [align] * layers,
            "intra": [0.5] * layers,
            "inter": [0.5] * layers,
        },
        "time": {"seconds": 0.5 if step > 1 else 9.0, "images_per_second": 16.0, "data_wait_fraction": 0.0},
        "memory": {"resident_bytes": 10**8 + step, "device_peak_bytes": None},
    }
