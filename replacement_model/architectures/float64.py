"""Float64 arithmetic over weights as they are stored, through modules that would compute in float32.

Letters: D d_model, O outputs of a weight, S of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Elements of a weight that are widened at a time: at most 268 MB of them.
WIDENED = 1 << 25


class _Float64(TorchFunctionMode):
    """What is float64 stays so, and what modules make of their weights is: norms and softmaxes would go through float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float and isinstance(args[0], nn.Parameter):
            return args[0].double()
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is F.linear and args[1].dtype != torch.float64:
                return _widened_linear(*args, **kwargs)
            if func is torch.Tensor.float:
                return args[0]
            if func in (F.softmax, torch.softmax, torch.Tensor.softmax) and kwargs.get("dtype") == torch.float32:
                kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **kwargs)


def _widened_linear(input_xd: Tensor, weight_od: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a narrower weight (O, D), a block of whose rows is widened at a time."""
    n_out, d_in = weight_od.shape
    step = max(1, WIDENED // d_in)
    out_xo = input_xd.new_empty(*input_xd.shape[:-1], n_out)
    widened_sd = input_xd.new_empty(min(step, n_out), d_in)
    for start in range(0, n_out, step):
        block = weight_od[start : start + step]
        out_xo[..., start : start + step] = F.linear(input_xd, widened_sd[: len(block)].copy_(block))
    return out_xo if bias is None else out_xo + bias


@contextmanager
def float64_arithmetic() -> Iterator[None]:
    """Compute in float64 whatever starts from float64 tensors, with weights as stored.

    Within it `Tensor.float` gives float64 for float64 tensors and for parameters; `Tensor.to(torch.float32)` rounds.
    """
    with torch.no_grad(), _Float64():
        yield
