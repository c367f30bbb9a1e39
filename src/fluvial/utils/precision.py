"""The precision of matrix multiplications in training and sampling."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """A context in which a GPU multiplies float32 matrices in TF32, unless the precision is fp32; restored at its end.

    With bf16 this concerns the few multiplications outside autocast, such as ARFlow's history: most of their factors
    come from bfloat16, which TF32 represents exactly.
    """
    with float32_matmul(torch.get_float32_matmul_precision() if precision == "fp32" else "high"):
        yield


@contextmanager
def float32_matmul(name: str) -> Iterator[None]:
    """A context with PyTorch's matmul precision of this name, such as "highest"; restored at its end."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
