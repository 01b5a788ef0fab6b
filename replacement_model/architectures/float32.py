"""Float32 arithmetic over weights as they are stored.

Letters: P positions, D d_model, O outputs of a weight, S of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Elements of a weight that are widened to float32 at a time: at most 268 MB of them. Where a CPU has few inputs to
# multiply, widening costs more than the product; then 2 MB, which stay in its cache until they are used.
_WIDENED, _WIDENED_IN_CACHE, _FEW_INPUTS = 1 << 26, 1 << 19, 64


class _Float32Linear(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].dtype == torch.float32 and args[1].dtype != torch.float32:
            return _widened_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _widened_linear(input_xd: Tensor, weight_od: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a narrow weight (O, D), a block of whose rows is widened to float32 at a time."""
    n_out, d_in = weight_od.shape
    in_cache = weight_od.device.type == "cpu" and input_xd.numel() <= _FEW_INPUTS * d_in
    step = max(1, (_WIDENED_IN_CACHE if in_cache else _WIDENED) // d_in)
    if step >= n_out:
        out_xo = F.linear(input_xd, weight_od.float())
    else:
        # Into one buffer: blocks and results allocated in turn leave holes that add up to the whole matrix.
        out_xo = input_xd.new_empty(*input_xd.shape[:-1], n_out)
        widened_sd = input_xd.new_empty(step, d_in)
        for start in range(0, n_out, step):
            block = weight_od[start : start + step]
            out_xo[..., start : start + step] = F.linear(input_xd, widened_sd[: len(block)].copy_(block))
    return out_xo if bias is None else out_xo + bias


@contextmanager
def float32_arithmetic() -> Iterator[None]:
    """Compute in float32 with weights as stored: each matrix is widened only for its product.

    In bfloat16 the residual stream would carry errors of 1e-2, and the linear model of a prompt would hold no better.
    Widening costs little memory, since it takes a block of a matrix at a time, and makes edges exact for the weights as
    they are.
    """
    with torch.no_grad(), _Float32Linear():
        yield


def stored_weight(module: nn.Module) -> Tensor:
    """Return a module's weight; fetch it for the moment if accelerate keeps it in host memory or on disk."""
    weight = module.get_parameter("weight")
    if weight.device.type != "meta":
        return weight
    from accelerate.utils import align_module_device  # only accelerate leaves weights on "meta"

    with align_module_device(module):
        return module.get_parameter("weight").clone()


def stored_parameters(module: nn.Module) -> list[Tensor]:
    """Return a module's own parameters by name; fetch those that accelerate keeps elsewhere for the moment."""
    named = sorted(module.named_parameters(recurse=False))
    if all(weight.device.type != "meta" for _, weight in named):
        return [weight for _, weight in named]
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return [module.get_parameter(name).clone() for name, _ in named]


def inverse_rms(x_pd: Tensor, eps: float) -> Tensor:
    """Return a norm's 1 / rms (P, 1) float32 at every position, as the model computes it."""
    return torch.rsqrt(x_pd.float().pow(2).mean(-1, keepdim=True) + eps)
