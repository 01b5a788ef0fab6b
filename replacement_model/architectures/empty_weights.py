"""Making a model whose numbers come from files, without the work that its own first numbers would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class EmptyWeights(TorchFunctionMode):
    """What spares tensors without storage the way through torch's Python code, which imports sympy for it.

    Drawing numbers for them has no effect. Ranges, of which rotary embeddings make their few frequencies, get storage.
    Tensors that have it are left alone.

    Example:
        >>> with EmptyWeights(), torch.device("meta"):
        ...     torch.nn.Linear(3, 4).weight.is_meta
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in _DRAWS and (tensor := args[0] if args else named["tensor"]).is_meta:
            return tensor
        device = named.get("device")
        if func is torch.empty_like and args[0].is_meta:
            return torch.empty(
                args[0].shape, dtype=named.get("dtype") or args[0].dtype, device=device or args[0].device
            )
        if func is torch.arange and device is not None and torch.device(device).type == "meta":
            return func(*args, **{**named, "device": "cpu"})
        return func(*args, **named)
