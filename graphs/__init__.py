"""Attribution graphs: node layout, pruning, scores, paths, pictures, pages, files. Knows nothing of models.

What users import is listed in `__init__.pyi`. A name is loaded when it is first used, so that importing a light module of
the package need not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from crosstrace.graphs.notebook import register_html

if TYPE_CHECKING:
    from crosstrace.graphs.graph import AttributionGraph

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _graph_html(graph: AttributionGraph) -> str:
    from crosstrace.graphs.page.frame import frame_html

    return frame_html(graph)


register_html("AttributionGraph", _graph_html)
