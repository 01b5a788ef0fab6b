"""Tracing a prompt into its attribution graph, and the command line.

Names are loaded when first used, so that ``crosstrace --help`` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstrace.tracer.attribution.directions import decoder_directions
    from crosstrace.tracer.attribution.targets import Contrast, Direction, Feature, Logit, parse_target
    from crosstrace.tracer.attribution.tracing import trace
    from crosstrace.tracer.cards.build import build_cards

_HOMES = {
    "cards.build": ("build_cards",),
    "attribution.directions": ("decoder_directions",),
    "attribution.targets": ("Contrast", "Direction", "Feature", "Logit", "parse_target"),
    "attribution.tracing": ("trace",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["Contrast", "Direction", "Feature", "Logit", "build_cards", "decoder_directions", "parse_target", "trace"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
