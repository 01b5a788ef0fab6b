"""What coarser matrix products do to edges: TF32 and bfloat16 products against float32 ones.

    python benchmarks/precision.py                    # the embedded demo
    python benchmarks/precision.py DIR --nodes 256    # what make_model.py wrote

``torch.set_float32_matmul_precision("high")`` lets a GPU round the operands of its float32 products to TF32, ``"medium"`` to
bfloat16. Here that is done on a CPU: every matrix product of the forward pass and of tracing gets operands rounded to the
nearest TF32 number (10 bits of mantissa) or bfloat16 number (7 bits), while products and sums stay float32, as in a tensor
core. Sparse score products are rounded alike. Prints for each the relative difference of the edges that both graphs have
(Frobenius norm) by kind of source, the features active in only one of them (each such feature moves into an error, whose
edges change the more for it), the features kept in only one of the pruned graphs, the largest change of a score, and the
completeness error, which shows the rounding too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, random_prompt, write_csv
from torch import Tensor
from torch.overrides import TorchFunctionMode

from crosstrace.graphs import AttributionGraph, graph_scores, prune
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import DALLAS_PROMPT
from crosstrace.tracer import trace

# Functions that multiply matrices, and where their two factors stand.
PRODUCTS: dict[Callable[..., Any], int] = {
    torch.mm: 0,
    torch.bmm: 0,
    torch.matmul: 0,
    torch.addmm: 1,
    torch.nn.functional.linear: 0,
    Tensor.mm: 0,
    Tensor.bmm: 0,
    Tensor.matmul: 0,
    Tensor.__matmul__: 0,
    Tensor.addmm_: 1,
}


def to_tf32(values: Tensor) -> Tensor:
    """float32 rounded to the nearest number with 10 bits of mantissa, ties away from zero, as the hardware converts."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def to_bfloat16(values: Tensor) -> Tensor:
    return values.bfloat16().float()


class Rounded(TorchFunctionMode):
    """While it is open, factors of every float32 matrix product are rounded first."""

    def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rounding, self.count = rounding, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            at = PRODUCTS[func]
            factors = [
                self.rounding(factor) if factor.dtype == torch.float32 else factor for factor in args[at : at + 2]
            ]
            args = (*args[:at], *factors, *args[at + 2 :])
            self.count += 1
        return func(*args, **(kwargs or {}))


def common_edges(graphs: Sequence[AttributionGraph]) -> list[dict[str, Tensor]]:
    """By kind of source, each graph's edges between nodes that all of them have, in the same order."""
    found = []
    places = [
        {tuple(entry): node for node, entry in enumerate(graph.active_features[graph.selected_features].tolist())}
        for graph in graphs
    ]
    shared = sorted(places[0].keys() & places[1].keys())
    for graph, at in zip(graphs, places, strict=True):
        layout, features = graph.layout, torch.tensor([at[entry] for entry in shared])
        rows = graph.adjacency[torch.cat([features, torch.arange(layout.logits.start, layout.logits.stop)])]
        found.append(
            {"features": rows[:, features], "errors": rows[:, layout.errors], "tokens": rows[:, layout.tokens]}
        )
    return found


def compare(name: str, exact: AttributionGraph, coarse: AttributionGraph) -> dict[str, object]:
    one, other = common_edges([exact, coarse])
    features = [{tuple(entry) for entry in graph.active_features.tolist()} for graph in (exact, coarse)]
    masks = [
        {graph.feature_of(node) for node in prune(graph).kept_nodes() if graph.layout.kind(node) == "feature"}
        for graph in (exact, coarse)
    ]
    scores = [graph_scores(graph) for graph in (exact, coarse)]
    row: dict[str, object] = {
        "products": name,
        **{f"{kind}_edges": f"{float((one[kind] - other[kind]).norm() / one[kind].norm()):.1e}" for kind in one},
        "active_in_one_only": len(features[0] ^ features[1]),
        "active": len(features[0]),
        "pruned_in_one_only": len(masks[0] ^ masks[1]),
        "pruned": len(masks[0]),
        "scores": f"{max(abs(x - y) for x, y in zip(*scores, strict=True)):.1e}",
        "completeness_error": f"{coarse.completeness_error():.1e}",
    }
    print(", ".join(f"{key} {value}" for key, value in row.items()))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="what make_model.py wrote; default the embedded demo")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--csv", help="name under benchmarks/results")
    arguments = parser.parse_args()

    def load() -> tuple[ReplacementModel, Any]:
        # anew for each: folded matrices and buffers of one way must not serve another
        if arguments.folder is None:
            return ReplacementModel.demo(), DALLAS_PROMPT
        clt = next((arguments.folder / "clt").iterdir())
        model = ReplacementModel.from_pretrained(arguments.folder / "model", clt, device="cpu")
        return model, random_prompt(arguments.tokens, model.description.vocab_size)

    model, prompt = load()
    exact = trace(model, prompt, max_feature_nodes=arguments.nodes, progress=False)
    assert exact.completeness_error() < 1e-5
    rows = []
    for name, rounding in (("TF32", to_tf32), ("bfloat16", to_bfloat16)):
        model, prompt = load()
        with Rounded(rounding) as mode:
            coarse = trace(
                model, prompt, exact.logit_tokens.tolist(), max_feature_nodes=arguments.nodes, progress=False
            )
        assert mode.count > 100, "nothing was rounded"
        rows.append(compare(name, exact, coarse))
    if arguments.csv:
        write_csv(RESULTS / arguments.csv, f"benchmarks/precision.py, products emulated on {machine()}", rows)


if __name__ == "__main__":
    main()
