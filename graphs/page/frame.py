"""A graph in a notebook: its interactive page in a sandboxed frame.

The frame may run the page's own script and nothing else: it has no origin, so it reaches neither the notebook nor the
network, and the page's content security policy holds inside it too.
"""

from __future__ import annotations

import html

from crosstrace.graphs.analysis.pruning import prune
from crosstrace.graphs.graph import AttributionGraph
from crosstrace.graphs.notebook import note
from crosstrace.graphs.page.data import page_data
from crosstrace.graphs.page.export import page
from crosstrace.graphs.page.limits import FRAME_LIMITS, PageLimits
from crosstrace.graphs.text import short

_STYLE = "width:100%;height:640px;border:1px solid #8884;border-radius:6px"


def frame_html(graph: AttributionGraph, limits: PageLimits = FRAME_LIMITS) -> str:
    """Return the HTML that shows a graph in a notebook.

    Args:
        graph: A raw graph is shown as pruned with the default thresholds.
        limits: How much the frame may hold. What is too large is not shown; a line in its place says how to write it to a
            file.
    """
    shown = graph if graph.node_mask is not None else prune(graph)
    try:
        content = page(page_data(shown, limits=limits), limits=limits).decode("utf-8")
    except ValueError:
        size = f"{graph.n:,} nodes and {graph.edges.nnz:,} edges"
        return note(
            f"AttributionGraph of {short(graph.prompt, 80)!r}: {size}, too large to show in a notebook. Write its page with "
            'write_html(graph, "graph.html"), or on the command line: crosstrace view GRAPH.safetensors -o graph.html'
        )
    title = html.escape(f"Attribution graph of {short(graph.prompt, 80)}")
    return f'<iframe title="{title}" sandbox="allow-scripts" style="{_STYLE}" srcdoc="{html.escape(content)}"></iframe>'
