"""The self-test's comparisons of the Triton backend, in Triton's interpreter; the tests start it as its own process.

Prints a line of JSON for every comparison that is beyond its budget, and their number.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import interpreter  # noqa: F401  (mends the interpreter)
import torch

from framer_kernels.selftest import parity


def main() -> None:
    parity.QUICK_SHAPES = [(2, 5, 8, 13)]
    subjects = [parity.Subject("triton", torch.float32, "ieee")]
    subjects += [parity.Subject("triton", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
    count = 0
    for subject in subjects:
        for comparison in parity.compare(subject, torch.device("cpu"), quick=True):
            count += 1
            if not comparison.passed:
                print(json.dumps([subject.name, str(subject.dtype), *comparison]))
    print(json.dumps(count))


if __name__ == "__main__":
    main()
