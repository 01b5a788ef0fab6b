"""The pictures in README and docs, from the embedded demo: docs/images/dallas.png, page.png, compare.png.

    python examples/readme_pictures.py [FOLDER]

Needs Graphviz, Pillow, chromium and node (`npm ci --prefix viewer`).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from crosstrace.graphs import (
    AttributionGraph,
    FeatureCards,
    prune,
    suggest_supernodes,
    with_card_labels,
    write_comparison_html,
    write_graph,
    write_html,
)
from crosstrace.graphs.analysis.pruning import cumulative_influence
from crosstrace.graphs.viewer_ids import node_ids
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import cards_of, trace

ROOT = Path(__file__).parents[1]
PROMPT = "The capital of the state containing {} is"
PINNED_TOKENS = 4


def main(folder: Path) -> None:
    """Writes the pictures into the folder."""
    model = ReplacementModel.demo()
    raw = trace(model, PROMPT.format("Dallas"))
    cards = cards_of(raw)
    dallas, oakland = (with_card_labels(prune(graph), cards) for graph in (raw, trace(model, PROMPT.format("Oakland"))))
    with tempfile.TemporaryDirectory() as temporary:
        page, both = Path(temporary) / "page.html", Path(temporary) / "both.html"
        write_html(dallas, page, cards, state=opened(dallas, cards))
        write_comparison_html(dallas, oakland, both, ("Dallas", "Oakland"), cards)
        for file, picture, size in ((f"{page}#view=graph", "page.png", "1400x900"), (both, "compare.png", "1400x800")):
            command = ["node", ROOT / "viewer" / "test" / "screenshot.mjs", file, folder / picture, "light", size]
            subprocess.run(command, check=True)
    write_graph(dallas, folder / "dallas.png")
    for picture in ("dallas.png", "page.png", "compare.png"):
        shrink(folder / picture)


def shrink(picture: Path) -> None:
    """Few colours are in a picture: a palette holds them in a third of the bytes."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            picture, optimize=True
        )


def opened(graph: AttributionGraph, cards: FeatureCards | None) -> dict[str, object]:
    """Suggested groups, the output and the tokens that matter most, pinned; the most influential feature selected."""
    ids, order, layout = node_ids(graph), cumulative_influence(graph), graph.layout
    groups = suggest_supernodes(graph, cards)
    tokens = sorted(range(layout.tokens.start, layout.tokens.stop), key=lambda node: float(order[node]))[:PINNED_TOKENS]
    features = [node for node in graph.kept_nodes() if layout.kind(node) == "feature"]
    pinned = [node for _, nodes in groups for node in nodes] + sorted(tokens) + [layout.logit_index(0)]
    return {
        "pinnedIds": [ids[node] for node in pinned],
        "supernodes": [[name, *(ids[node] for node in nodes)] for name, nodes in groups],
        "clickedId": ids[min(features, key=lambda node: float(order[node]))],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
