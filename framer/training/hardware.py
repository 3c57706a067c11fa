"""What the device can do, and what a process holds in memory."""

from __future__ import annotations

import re
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict

from framer.config.training import TrainConfig
from framer.extras import require

# 1e12 floating-point operations a second of dense matrix products in bf16 and fp16 with float32 accumulation, from the
# vendors' data sheets; figures with sparsity are halved. The first name that matches counts.
_PEAK_TFLOPS: Final = (
    (r"\bA100\b", 312.0),
    (r"\bH100 PCIe", 756.0),
    (r"\bH100 (80GB HBM3|SXM)", 989.0),
    (r"\bH200\b(?! NVL)", 989.0),
    (r"\bB200\b", 2250.0),
    (r"\bL40S\b", 362.0),
    (r"\bRTX 4090\b(?! (D|Laptop))", 165.0),
    (r"\bMI300X\b", 1307.0),
)


class MemoryUse(BaseModel):
    """Memory of rank 0.

    Attributes:
        resident_bytes: What the process holds of the machine's memory, its data workers apart.
        device_peak_bytes: Most that tensors have held of the GPU's memory so far; None without a GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resident_bytes: int
    device_peak_bytes: int | None


def memory_use() -> MemoryUse:
    """What this process holds now."""
    resident = int(require("psutil", extra="train").Process().memory_info().rss)
    peak = int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
    return MemoryUse(resident_bytes=resident, device_peak_bytes=peak)


def peak_flops(config: TrainConfig) -> float | None:
    """Floating-point operations a second that one rank's device can do in the run's precision.

    Returns:
        ``health.peak_tflops`` where it is set; otherwise the data sheet's figure for bf16 and fp16 on a known GPU; None
        elsewhere, and in fp32, whose speed depends on whether TF32 is allowed.
    """
    if config.health.peak_tflops is not None:
        return config.health.peak_tflops * 1e12
    if config.training.precision == "fp32" or not torch.cuda.is_available():
        return None
    return data_sheet_flops(torch.cuda.get_device_name())


def data_sheet_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a GPU by its name; None where it is not known."""
    return next((tflops * 1e12 for pattern, tflops in _PEAK_TFLOPS if re.search(pattern, device_name)), None)
