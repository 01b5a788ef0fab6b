"""How long it takes from the command to the first graph, beside an older state of the project.

    python benchmarks/first_graph.py                                                     # the embedded demo
    python benchmarks/first_graph.py --model FOLDER --transcoders FOLDER                 # a real model
    python benchmarks/first_graph.py --before OTHER/bin/python --csv first-graph.csv     # … beside an older installation

`crosstrace trace` is run as a user runs it, each time in a process of its own, the two states in turns. Before anything is
reported the graphs have to be equal: the same nodes, and activations and edges that differ by rounding at most. Phases are
taken in further runs, in which a script does what the command does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, machine, write_csv

DEMO_PROMPT = "The capital of the state containing Dallas is"
REAL_PROMPT = "The Eiffel Tower is in the city of"
COMMAND = "import sys; from crosstrace.tracer.{module} import main; sys.exit(main())"
MODULES = ("commands.app", "command_line")  # now, and before there were folders
PHASES = """
import json, sys, time
model, transcoders, prompt = json.loads(sys.argv[1])
marks = {}
last = [time.perf_counter(), time.process_time()]
def mark(name):
    now = [time.perf_counter(), time.process_time()]
    marks[name] = [now[0] - last[0], now[1] - last[1]]
    last[:] = now
import torch
mark("torch")
from crosstrace.graphs import prune
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
mark("crosstrace")
loaded = ReplacementModel.from_pretrained(model, transcoders, "cpu") if model else ReplacementModel.demo("cpu")
mark("transformers, model and tokenizer")
graph = trace(loaded, prompt, max_feature_nodes=512, progress=False)
mark("tracing")
prune(graph)
mark("pruning")
print(json.dumps(marks))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--transcoders")
    parser.add_argument("--prompt")
    parser.add_argument("--before", help="the Python of an older installation of crosstrace")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: as it chooses")
    parser.add_argument("--csv", help="name of a file in benchmarks/results")
    args = parser.parse_args()
    prompt = args.prompt or (REAL_PROMPT if args.model else DEMO_PROMPT)
    pythons = {"now": sys.executable} | ({"before": args.before} if args.before else {})
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {state: Path(folder) / f"{state}.safetensors" for state in pythons}
        chosen = ["--model", args.model, "--transcoders", args.transcoders] if args.model else []
        command = ["trace", prompt, *chosen, "--max-feature-nodes", "512", "--device", "cpu", "-q"]
        taken: dict[str, list[tuple[float, float]]] = {state: [] for state in pythons}
        for number in range(args.repeats + 1):
            for state, python in pythons.items():
                took = run_command(python, [*command, "-o", str(files[state])], environment, folder)
                if number:  # the first run reads the files from the disk
                    taken[state].append(took)
        if args.before:
            difference = check_equal(files["now"], files["before"])
            print(
                "the graphs are equal"
                + (f" but for {difference:.0e} of the largest number" if difference else " to the bit")
            )
    for state, python in pythons.items():
        wall, processor = (statistics.median(column) for column in zip(*taken[state], strict=True))
        rows.append(
            {"state": state, "phase": "the whole command", "wall s": round(wall, 2), "CPU s": round(processor, 2)}
        )
        for phase, (seconds, processor_seconds) in phases(python, args, prompt, environment).items():
            rows.append(
                {"state": state, "phase": phase, "wall s": round(seconds, 2), "CPU s": round(processor_seconds, 2)}
            )
    for row in rows:
        print(f"{row['state']:7} {row['phase']:34} {row['wall s']:6.2f} s wall {row['CPU s']:6.2f} s CPU")
    if args.before:
        whole = {row["state"]: row for row in rows if row["phase"] == "the whole command"}
        for clock in ("wall s", "CPU s"):
            print(f"now takes {whole['now'][clock] / whole['before'][clock]:.2f} of the {clock.split()[0]} time")  # type: ignore[operator]
    if args.csv:
        write_csv(RESULTS / args.csv, machine(), rows)


def run_command(python: str, command: list[str], environment: dict[str, str], folder: str) -> tuple[float, float]:
    """Run `crosstrace` and return its seconds by the wall and of processors, those of its children among them."""
    probe = f"import importlib.util\ntry: importlib.util.find_spec('crosstrace.tracer.{MODULES[0]}') and print('{MODULES[0]}')"
    probe += "\nexcept ModuleNotFoundError: pass"
    newer = subprocess.run(
        [python, "-c", probe], capture_output=True, text=True, cwd=folder, env=environment, check=True
    )
    code = COMMAND.format(module=newer.stdout.strip() or MODULES[1])
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [python, "-c", code, *command], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check_equal(now: Path, before: Path) -> float:
    """Check that two graphs are of the same nodes; return how far their numbers differ, relative to the largest."""
    from crosstrace.graphs import AttributionGraph

    one, other = AttributionGraph.load(now), AttributionGraph.load(before)
    for name in ("tokens", "active_features", "selected_features", "logit_tokens"):
        assert torch.equal(getattr(one, name), getattr(other, name)), f"{name} differs"
    difference = 0.0
    for name in ("activations", "logit_probabilities", "adjacency", "unattributed"):
        here, there = getattr(one, name), getattr(other, name)
        difference = max(difference, float((here - there).abs().max() / there.abs().max()))
    assert difference < 1e-5, f"the graphs differ by {difference:.1e}"
    return difference


def phases(python: str, args: argparse.Namespace, prompt: str, environment: dict[str, str]) -> dict[str, list[float]]:
    """Median wall and processor seconds of each phase."""
    given = json.dumps([args.model, args.transcoders, prompt])
    runs = []
    for _ in range(args.repeats):
        done = subprocess.run(
            [python, "-c", PHASES, given],
            capture_output=True,
            text=True,
            cwd=tempfile.gettempdir(),
            env=environment,
            check=True,
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: [statistics.median(run[name][clock] for run in runs) for clock in (0, 1)] for name in runs[0]}


if __name__ == "__main__":
    main()
