"""Temporary hooks on a model's modules, removed again whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Hook = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Call `hook(args, kwargs, output)` after each module; what it returns, unless None, replaces the output.

    Args:
        hooks: Pairs of a module and its hook.
    """
    handles = [
        module.register_forward_hook(
            lambda _module, args, kwargs, output, hook=hook: hook(args, kwargs, output), with_kwargs=True
        )
        for module, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
