"""How close `crosstrace trace --explain` comes to the memory that the trace then takes.

    python benchmarks/plan_memory.py
    python benchmarks/plan_memory.py --model DIR/model --transcoders DIR/clt/random --tokens 16 --nodes 512

Each prompt is planned in one process and traced in another, by the command line; the operating system says what the second
one held at most (`ru_maxrss`, pages of mapped files among them). Two plans are printed: with the `l0` of the transcoders'
config, as `--explain` has it, and with the number of features that turned out to be active. Without a model, the embedded
demo is traced.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from crosstrace.replacement_model import demo


def planned(model: str, transcoders: str, prompt: str, nodes: int | None, active: float | None) -> dict[str, Any]:
    """Plan in a process of its own, as `--explain` does."""
    code = (
        "import json, sys; from crosstrace.tracer import plan_trace;"
        "model, transcoders, prompt, nodes, active = json.loads(sys.argv[1]);"
        "plan = plan_trace(model, transcoders, prompt, nodes, device='cpu', active_per_layer=active);"
        "parts = [[part.name, part.n_bytes, part.phase] for part in plan.parts];"
        "print(json.dumps({'peak': plan.peak_bytes, 'active': plan.active_per_layer, 'parts': parts,"
        " 'layers': plan.description.n_layers, 'excluded': plan.description.excluded_first}))"
    )
    arguments = json.dumps([model, transcoders, prompt, nodes, active])
    done = subprocess.run([sys.executable, "-c", code, arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measured(command: list[str]) -> int:
    """Run a command and return the most memory it held, in bytes."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


def active_per_layer(graph_file: Path, layers: int, excluded: int) -> float:
    """Return how many features fired at a layer and token."""
    from crosstrace.graphs import read_graph

    graph = read_graph(graph_file)
    return len(graph.active_features) / (layers * (len(graph.tokens) - excluded))


def main() -> None:
    """Plan, trace, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo.MODEL_DIR))
    parser.add_argument("--transcoders", default=str(demo.TRANSCODERS_DIR))
    parser.add_argument("--prompt", default=demo.DALLAS_PROMPT)
    parser.add_argument("--tokens", type=int, help="a prompt of the words w10, w11, … of a random model instead")
    parser.add_argument("--nodes", type=int, help="as --max-feature-nodes")
    parser.add_argument("--parts", action="store_true", help="print the second plan's parts")
    arguments = parser.parse_args()
    prompt = arguments.prompt
    if arguments.tokens:
        prompt = " ".join(f"w{i}" for i in range(10, 9 + arguments.tokens))
    where = (arguments.model, arguments.transcoders)
    expected = planned(*where, prompt, arguments.nodes, None)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.safetensors"
        command = [str(Path(sys.executable).with_name("crosstrace")), "trace", prompt, "--device", "cpu", "-q"]
        command += ["--model", where[0], "--transcoders", where[1], "-o", str(graph)]
        peak = measured([*command, "--max-feature-nodes", str(arguments.nodes)] if arguments.nodes else command)
        active = active_per_layer(graph, expected["layers"], expected["excluded"])
    informed = planned(*where, prompt, arguments.nodes, active)
    if arguments.parts:
        for name, size, phase in informed["parts"]:
            print(f"  {size / 1e6:8.0f} MB  {name} ({phase})")
    print(f"measured {peak / 1e6:,.0f} MB, {active:.1f} features active per layer and token")
    for name, plan in (("config's l0", expected), ("as measured", informed)):
        ratio = plan["peak"] / peak
        print(
            f"planned  {plan['peak'] / 1e6:,.0f} MB with {plan['active']:.1f} active ({name}): {ratio:.2f} of measured"
        )


if __name__ == "__main__":
    main()
