"""The precision of matrix products in training and sampling."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """On a GPU, float32 products in TF32 unless they are to be fp32; puts back what was.

    Under bf16 these are the few that autocast leaves alone, such as ARFlow's history: most of their factors come from
    bfloat16, which TF32 holds exactly.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before if precision == "fp32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
