"""Memory of `crosstrace read` with a very wide SAE, against the memory budget.

    python benchmarks/sae_memory.py [--features 262144] [--layers 4] [--tokens 128]

Writes a random Gemma 3 of the widths of 1B with few layers, and random SAEs of `resid_post` at one layer in Gemma Scope 2's
layout: the wide one, and one of 256 features to compare with. Every run is a process of its own; of its memory, what it holds
itself (RssAnon) and everything (mapped files too) are looked at every few milliseconds. What the wide SAE takes is the
difference to the narrow one under the same budget. The runs have to agree on the latents, whatever the budget.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import RESULTS, machine, write_csv
from make_model import SHAPES, StreamedFile, write_model
from scipy.stats import norm

BUDGETS = ("500MB", "1GB", "2GB", "8GB")
NARROW = 256


def write_sae(folder: Path, layer: int, d_model: int, features: int, active: float) -> Path:
    """A random SAE of the residual stream after a layer; about ``active`` latents fire at a token."""
    folder.mkdir(parents=True)
    hook = f"model.layers.{layer}.output"
    config = {"hf_hook_point_in": hook, "hf_hook_point_out": hook, "width": features, "model_name": "random"}
    config |= {"architecture": "jump_relu", "l0": active, "affine_connection": False, "type": "sae"}
    (folder / "config.json").write_text(json.dumps(config))
    file = StreamedFile()
    file.random("w_enc", (d_model, features), "bfloat16", d_model**-0.5, 1)
    file.random("w_dec", (features, d_model), "bfloat16", d_model**-0.5, 2)
    file.constant("b_enc", (features,), "float32", 0.0)
    # Tokens start with root mean square 1, and each layer adds twice half of that (see make_model.py).
    size = math.sqrt(1 + 2 * 0.25 * (layer + 1))
    file.constant("threshold", (features,), "float32", size * float(norm.isf(active / features)))
    file.constant("b_dec", (d_model,), "float32", 0.0)
    file.write(folder / "params.safetensors")
    return folder


def peaks(command: list[str]) -> tuple[float, float, float]:
    """Run a command; seconds, and the most bytes it held: its own, and with mapped files."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    own = everything = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = dict(re.findall(r"^(RssAnon|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
        own, everything = max(own, int(found.get("RssAnon", 0))), max(everything, int(found.get("VmHWM", 0)))
        time.sleep(0.004)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begin, own * 1024, everything * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=262_144)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--active", type=float, default=50)
    parser.add_argument("--csv", help="write the table to benchmarks/results")
    arguments = parser.parse_args()
    shape = SHAPES["1b"] | {"layers": arguments.layers}
    layer, d_model = arguments.layers - 1, shape["d_model"]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", shape, 0)
        wide = write_sae(folder / "wide", layer, d_model, arguments.features, arguments.active)
        narrow = write_sae(folder / "narrow", layer, d_model, NARROW, min(arguments.active, NARROW / 8))
        prompt = " ".join(f"w{4 + 97 * at}" for at in range(arguments.tokens - 1))
        stored = 2 * arguments.features * d_model * 2
        print(f"{machine()}; SAE of {arguments.features:,} latents, {stored / 1e6:,.0f} MB; {arguments.tokens} tokens")
        latents = None
        for budget in BUDGETS:
            own, everything, seconds = {}, {}, {}
            for which, sae in (("narrow", narrow), ("wide", wide)):
                report = folder / "reading.json"
                command = [
                    sys.executable,
                    "-c",
                    "from crosstrace.tracer.commands.app import main; main()",
                    "read",
                    prompt,
                ]
                command += ["-q", "--model", str(folder / "model"), "--sae", str(sae), "-o", str(report)]
                seconds[which], own[which], everything[which] = peaks(
                    [*command, "--device", "cpu", "--memory-budget", budget]
                )
            read = [
                [latent[key] for key in ("layer", "position", "feature")]
                for latent in json.loads(report.read_text("utf-8"))["latents"]
            ]
            assert read, "no latent is active"
            assert latents in (None, read), f"with {budget} other latents were read"
            latents = read
            rows.append(
                {
                    "budget": budget,
                    "narrow_own_megabytes": round(own["narrow"] / 1e6),
                    "wide_own_megabytes": round(own["wide"] / 1e6),
                    "difference_megabytes": round((own["wide"] - own["narrow"]) / 1e6),
                    "wide_with_mapped_megabytes": round(everything["wide"] / 1e6),
                    "wide_seconds": round(seconds["wide"], 1),
                }
            )
            print(rows[-1], flush=True)
    if arguments.csv:
        write_csv(RESULTS / arguments.csv, f"{machine()}; {arguments.tokens} tokens, {arguments.layers} layers", rows)


if __name__ == "__main__":
    main()
