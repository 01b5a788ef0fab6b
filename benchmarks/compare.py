"""crosstrace and circuit-tracer side by side: same model, transcoder, prompt and number of feature nodes.

    python benchmarks/make_model.py DIR --shape 270m --features 2048 --active 35
    python3 -m venv OTHER && OTHER/bin/pip install circuit-tracer==0.5.0 nnsight==0.6.1
    python benchmarks/compare.py DIR --other-python OTHER/bin/python

Each tool runs in a process of its own, so that peak memory is each one's; crosstrace before and after circuit-tracer, and the
slower of the two counts, so that a machine that is busy for a while does not flatter it. Verifies before it prints a ratio:
the features both selected must have the same edges from features and errors, and from tokens after a factor of sqrt(d_model)
by which circuit-tracer's are too small on Gemma 3. Both run in float32: in bfloat16 the model itself differs a little (Gemma
rounds the embeddings' scale to the dtype of the weights). circuit-tracer runs with its nnsight backend, the only one for
Gemma 3, on the same CLT converted to its layout in float32 (conversion is not timed).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, random_prompt, write_csv

OURS = """
import json, resource, sys, time, torch
arguments = json.loads(sys.argv[1])
begin = time.perf_counter()
import transformers.models.gemma3.modeling_gemma3
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
imported = time.perf_counter()
model = ReplacementModel.from_pretrained(
    arguments["model"], arguments["clt"], device="cpu", dtype=torch.float32
)
loaded = time.perf_counter()
graph = trace(model, arguments["ids"], max_feature_nodes=arguments["nodes"], progress=False)
traced = time.perf_counter()
assert graph.completeness_error() < 1e-5
torch.save({
    "active": graph.active_features, "selected": graph.selected_features, "logits": graph.logit_tokens,
    "adjacency": graph.adjacency, "import": imported - begin, "load": loaded - imported, "trace": traced - loaded,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}, arguments["out"])
"""

THEIRS = """
import json, resource, sys, time, torch
arguments = json.loads(sys.argv[1])
begin = time.perf_counter()
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
imported = time.perf_counter()
clt = load_clt(
    arguments["converted"], feature_input_hook="mlp.hook_in", feature_output_hook="hook_mlp_out",
    device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=True, lazy_encoder=False,
)
model = ReplacementModel.from_pretrained_and_transcoders(
    arguments["model"], clt, backend="nnsight", device=torch.device("cpu"), dtype=torch.float32
)
loaded = time.perf_counter()
graph = attribute(
    torch.tensor(arguments["ids"]), model, max_n_logits=10, desired_logit_prob=0.95, batch_size=arguments["batch"],
    max_feature_nodes=arguments["nodes"], verbose=False,
)
traced = time.perf_counter()
torch.save({
    "active": graph.active_features.cpu(), "selected": graph.selected_features.cpu(),
    "logits": graph.logit_token_ids.cpu(),
    "adjacency": graph.adjacency_matrix.cpu().float(), "import": imported - begin, "load": loaded - imported,
    "trace": traced - loaded, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}, arguments["out"])
"""


def convert(clt: Path, folder: Path) -> None:
    """The CLT in circuit-tracer's layout: encoders transposed, decoder rows of later layers only."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(exist_ok=True)
    for layer in range(len(list(clt.glob("params_layer_*.safetensors")))):
        if (folder / f"W_dec_{layer}.safetensors").exists():
            continue
        stored = {key: tensor.float() for key, tensor in load_file(clt / f"params_layer_{layer}.safetensors").items()}
        encoder = {f"W_enc_{layer}": stored["w_enc"].T.contiguous(), f"threshold_{layer}": stored["threshold"]}
        encoder |= {f"{key}_{layer}": stored[key] for key in ("b_enc", "b_dec")}
        save_file(encoder, folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": stored["w_dec"][:, layer:].contiguous()}, folder / f"W_dec_{layer}.safetensors")
    config = "model_name: random\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: mlp.hook_in\n"
    (folder / "config.yaml").write_text(config + "feature_output_hook: hook_mlp_out\nscan: random\n")


def for_transformers_4(model: Path, folder: Path) -> None:
    """The model's files again, with a tokenizer config that circuit-tracer's own transformers can read."""
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        copy = folder / file.name
        if file.name != "tokenizer_config.json" and not copy.exists():
            copy.symlink_to(file.resolve())
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def run(python: str, code: str, arguments: dict[str, object], out: Path) -> dict[str, Any]:
    """Run a tool in its own process; what it measured."""
    result = subprocess.run(
        [python, "-c", code, json.dumps(arguments | {"out": str(out)})], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{python} failed:\n{result.stderr[-3000:]}")
    return torch.load(out, weights_only=True)


def measured(name: str, python: str, code: str, arguments: dict[str, object], out: Path) -> dict[str, Any]:
    """As :func:`run`, and printed."""
    result = run(python, code, arguments, out)
    print(f"{name}: {result['trace']:.1f} s, {result['peak'] / 1e9:.2f} GB", flush=True)
    return result


def check(
    ours: dict[str, Any], theirs: dict[str, Any], n_layers: int, n_positions: int, d_model: int
) -> dict[str, float]:
    """Relative differences of the edges that both have, by kind of source."""
    keys = []
    for side in (ours, theirs):
        active = side["active"][side["selected"]].tolist()
        keys.append({tuple(entry): node for node, entry in enumerate(active)})
    common = sorted(keys[0].keys() & keys[1].keys())
    assert len(common) > 0.5 * len(keys[0]), f"only {len(common)} features were selected by both"
    logits = sorted(set(ours["logits"].tolist()) & set(theirs["logits"].tolist()))
    assert logits, "no target in common"
    blocks = []
    for side, known in ((ours, keys[0]), (theirs, keys[1])):
        count = len(side["selected"])
        features = torch.tensor([known[key] for key in common])
        targets = [count + (n_layers + 1) * n_positions + side["logits"].tolist().index(token) for token in logits]
        rows = side["adjacency"][torch.cat([features, torch.tensor(targets)])]
        errors = rows[:, count : count + n_layers * n_positions]
        tokens = rows[:, count + n_layers * n_positions : count + (n_layers + 1) * n_positions]
        blocks.append({"features": rows[:, features], "errors": errors, "tokens": tokens})
    blocks[1]["tokens"] = blocks[1]["tokens"] * math.sqrt(d_model)
    return {name: float((blocks[0][name] - blocks[1][name]).norm() / blocks[0][name].norm()) for name in blocks[0]} | {
        "selected by both": len(common) / len(keys[0])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what make_model.py wrote")
    parser.add_argument("--other-python", required=True, help="the python of circuit-tracer's environment")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--other-batch", type=int, default=128, help="circuit-tracer's batch size")
    parser.add_argument("--csv", default="compare.csv")
    arguments = parser.parse_args()
    model, clt = arguments.folder / "model", next((arguments.folder / "clt").iterdir())
    config = json.loads((model / "config.json").read_text())
    converted = arguments.folder / "circuit-tracer"
    convert(clt, converted)
    for_transformers_4(model, arguments.folder / "model-transformers-4")
    settings: dict[str, object] = {
        "model": str(model),
        "clt": str(clt),
        "converted": str(converted),
        "ids": random_prompt(arguments.tokens, config["vocab_size"]),
        "nodes": arguments.nodes,
        "batch": arguments.other_batch,
    }
    theirs_settings = settings | {"model": str(arguments.folder / "model-transformers-4")}
    before = measured("crosstrace", sys.executable, OURS, settings, arguments.folder / "ours.pt")
    theirs = measured("circuit-tracer", arguments.other_python, THEIRS, theirs_settings, arguments.folder / "theirs.pt")
    after = measured("crosstrace", sys.executable, OURS, settings, arguments.folder / "ours.pt")
    ours = max(before, after, key=lambda run: run["trace"])
    differences = check(ours, theirs, config["num_hidden_layers"], arguments.tokens, config["hidden_size"])
    print("differences: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    wrong = {name: value for name, value in differences.items() if name != "selected by both" and value > 1e-5}
    if wrong:
        raise SystemExit(f"the graphs do not agree, so no ratio is printed: {wrong}")
    table: list[dict[str, object]] = [
        {
            "tool": name,
            "load_s": round(side["load"], 2),
            "trace_s": round(side["trace"], 2),
            "peak_resident_gb": round(side["peak"] / 1e9, 2),
            "active": len(side["active"]),
            "nodes": len(side["selected"]),
        }
        for name, side in (("crosstrace", ours), ("circuit-tracer", theirs))
    ]
    faster = theirs["trace"] / ours["trace"]
    print(f"{faster:.1f} x faster, {ours['peak'] / theirs['peak']:.2f} of the memory")
    agreement = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    write_csv(
        RESULTS / arguments.csv, f"benchmarks/compare.py on {machine()}; relative differences: {agreement}", table
    )


if __name__ == "__main__":
    main()
