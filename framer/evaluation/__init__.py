"""How good pictures are: metrics with full ids, tables, sample sheets, and the comparison of folders."""

from framer.evaluation.metrics import PSNR_ID, SSIM_ID, Image, psnr, ssim
from framer.evaluation.sheets import SheetRow, write_sample_sheet
from framer.evaluation.table import (
    EvaluationRow,
    evaluate,
    markdown_table,
    mean_row,
    read_evaluation,
    write_evaluation,
)

__all__ = [
    "PSNR_ID",
    "SSIM_ID",
    "EvaluationRow",
    "Image",
    "SheetRow",
    "evaluate",
    "markdown_table",
    "mean_row",
    "psnr",
    "read_evaluation",
    "ssim",
    "write_evaluation",
    "write_sample_sheet",
]
