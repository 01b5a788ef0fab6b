"""Time and memory of global weights: the strongest inputs and outputs of some features, of a model from make_model.py.

    python benchmarks/make_model.py DIR --shape 1b --features 10080 --distinct 256
    python benchmarks/weights.py DIR --features 1000 --threads 1

Links are first checked against float64 dot products of the rows in the files; a wrong one stops the run. Then one run is timed,
in this process, without a sample of a corpus: denominators of norms are 1, which changes no time. Decoders are mapped files:
pages that the system has read for them are counted apart from the process' own memory.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import RESULTS, machine, watched_memory, write_csv

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.readouts.norm_scales import NormScales
from crosstrace.tracer.virtual_weights.compute import GlobalWeights, global_weights

_CHECKED = 8  # features, and others at random that must not be stronger than what was kept


def exact(model: ReplacementModel, source: tuple[int, int], target: tuple[int, int]) -> float:
    """The virtual weight in float64, with denominators of 1 and no skip connections."""
    rows_jd = model.transcoders.reader.decoder_rows(source[0], torch.tensor([source[1]]))[0].double()
    gain_d = model.sites.gain(model.sites.layers[target[0]].pre_feedforward_norm).double()
    encoder_d = model.transcoders.reader.encoder(target[0]).w_enc_df[:, target[1]].double()
    return float(rows_jd[: target[0] - source[0]].sum(0) @ (gain_d * encoder_d))


def check(model: ReplacementModel, found: GlobalWeights) -> float:
    """The largest relative difference from float64; raises where a stronger link was missed."""
    worst, generator = 0.0, torch.Generator().manual_seed(1)
    for key in found.features:
        for inputs, links in ((True, found.strongest_inputs(key)), (False, found.strongest_outputs(key))):
            for link in links:
                ends = (link.feature, key) if inputs else (key, link.feature)
                expected = exact(model, *ends)
                worst = max(worst, abs(link.weight - expected) / abs(expected))
            layers = range(key[0]) if inputs else range(key[0] + 1, len(found.n_features))
            for _ in range(32 if links else 0):
                layer = layers[int(torch.randint(len(layers), (), generator=generator))]
                other = (layer, int(torch.randint(found.n_features[layer], (), generator=generator)))
                missed = abs(exact(model, *((other, key) if inputs else (key, other))))
                if other not in {link.feature for link in links} and missed > abs(links[-1].weight) * (1 + 1e-5):
                    raise SystemExit(f"{key}: {other} is stronger than what was kept")
    if worst > 1e-5:
        raise SystemExit(f"links are off by {worst:.1e}, more than 1e-5")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="as make_model.py wrote it")
    parser.add_argument("--features", type=int, default=1000)
    parser.add_argument("--top", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", help="write results/NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = ReplacementModel.from_pretrained(arguments.folder / "model", arguments.folder / "clt" / "random", "cpu")
    used = model.transcoders
    scales = NormScales(torch.ones(used.n_layers, 3))
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(sum(used.n_features.values()), (arguments.features,), generator=generator).unique().tolist()
    chosen = [divmod(place, used.n_features[0]) for place in places]
    step = max(1, len(chosen) // _CHECKED)
    worst = check(model, global_weights(model, chosen[::step][:_CHECKED], scales, top=arguments.top))
    print(f"checked {_CHECKED} features against float64: largest relative difference {worst:.1e}", flush=True)
    with watched_memory() as memory:
        wall, processor = time.perf_counter(), time.process_time()
        global_weights(model, chosen, scales, top=arguments.top)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    row = {
        "layers": used.n_layers,
        "features_a_layer": used.n_features[0],
        "d_model": used.d_model,
        "decoder_gb": round(used.decoder_bytes() / 1e9, 2),
        "chosen": len(chosen),
        "top": arguments.top,
        "wall_s": round(wall, 1),
        "cpu_s": round(processor, 1),
        "own_memory_gb": round(memory.anonymous / 1e9, 2),
        "with_mapped_pages_gb": round(memory.resident / 1e9, 2),
        "difference_from_float64": f"{worst:.1e}",
    }
    print(row)
    if arguments.csv:
        write_csv(RESULTS / arguments.csv, f"benchmarks/weights.py on {machine()}", [row])


if __name__ == "__main__":
    main()
