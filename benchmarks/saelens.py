"""Whether SAELens 6 and crosstrace say the same of the same SAEs.

    python benchmarks/saelens.py                            # makes a virtual environment for SAELens (2 GB), once
    python benchmarks/saelens.py --saelens ENVIRONMENT      # one that has it already

SAELens pins versions of its own, so it stays in an environment apart. There it writes random SAEs of every kind with its own
classes, reads them back, and keeps what they make of some tokens; here crosstrace reads the same folders. The table has, for
each kind, the largest difference of an activation and of a reconstruction, relative to the largest of them; the script fails
where one is over 1e-5, or where other features fire.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

D_MODEL, N_FEATURES, N_TOKENS, K = 96, 768, 200, 24
TOLERANCE = 1e-5
ENVIRONMENT = Path.home() / ".cache" / "crosstrace" / "saelens"
KINDS = {
    "standard": {},
    "jumprelu": {},
    "topk": {"k": K},
    "topk, by decoder norm": {"k": K, "rescale_acts_by_decoder_norm": True},
    "gated": {},
}
SCALINGS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


def write_answers(folder: Path) -> None:
    """Write SAEs and what SAELens makes of them; runs in its environment."""
    import sae_lens

    classes = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
    }
    torch.manual_seed(0)
    tokens_pd = torch.randn(N_TOKENS, D_MODEL) * torch.logspace(-1, 1, N_TOKENS)[:, None] + 1
    cases = list(itertools.product(KINDS, SCALINGS, (True, False)))
    for number, (kind, scaling, centred) in enumerate(cases):
        sae_class, config_class = classes[kind.partition(",")[0]]
        sae = sae_class(
            config_class(
                d_in=D_MODEL,
                d_sae=N_FEATURES,
                apply_b_dec_to_input=centred,
                normalize_activations=scaling,
                metadata=sae_lens.saes.sae.SAEMetadata(
                    model_name="gemma-3-270m", hook_name="blocks.3.hook_resid_post", hook_head_index=None
                ),
                **KINDS[kind],
            )
        )
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                scale = {"W_enc": D_MODEL**-0.5, "r_mag": 0.3, "b_gate": 0.3, "b_enc": 0.3}.get(name, 1.0)
                parameter.copy_(scale * torch.randn_like(parameter))
        at = folder / str(number)
        sae.save_model(at)
        with torch.no_grad():
            read_back = sae_lens.SAE.load_from_disk(at)
            activations_pf = read_back.encode(tokens_pd)
            answers = {"activations": activations_pf, "reconstructions": read_back.decode(activations_pf)}
        save_file({name: tensor.contiguous() for name, tensor in answers.items()}, at / "answers.safetensors")
    save_file({"tokens": tokens_pd}, folder / "tokens.safetensors")
    (folder / "cases.json").write_text(json.dumps({"version": sae_lens.__version__, "cases": cases}))


def compare(folder: Path) -> bool:
    """Print what crosstrace makes of the same SAEs, beside SAELens's answers; return whether they agree."""
    from crosstrace.replacement_model import Saes, open_sae

    told = json.loads((folder / "cases.json").read_text())
    tokens_pd = load_file(folder / "tokens.safetensors")["tokens"]
    print(
        f"SAELens {told['version']}, {N_TOKENS} tokens of width {D_MODEL}, {N_FEATURES} features; of each kind "
        f"{2 * len(SCALINGS)} SAEs, with every normalize_activations, b_dec subtracted and not; the largest differences\n"
    )
    worst: dict[str, list[float]] = {}
    for number, (kind, _, _) in enumerate(told["cases"]):
        answers = load_file(folder / str(number) / "answers.safetensors")
        sae = Saes(open_sae(folder / str(number)), torch.device("cpu"))
        (layer,) = sae.layers
        features = positions, numbers, values = sae.encode(layer, tokens_pd, 0)
        activations_pf = torch.zeros(N_TOKENS, N_FEATURES).index_put((positions, numbers), values)
        written_jpd = torch.zeros(1, N_TOKENS, D_MODEL)
        sae.add_decoded(layer, features, written_jpd)
        reconstructions_pd = sae.reconstruction(layer, written_jpd[0], tokens_pd)
        theirs = answers["activations"]
        far = [
            ((ours - wanted).abs().max() / wanted.abs().max()).item()
            for ours, wanted in ((activations_pf, theirs), (reconstructions_pd, answers["reconstructions"]))
        ]
        found = [float(((activations_pf > 0) != (theirs > 0)).sum()), *far]
        worst[kind] = [max(pair) for pair in zip(worst.get(kind, [0.0] * 3), found, strict=True)]
    print("| kind | other features fire | activations | reconstructions |")
    print("| --- | --- | --- | --- |")
    for kind, (others, activation, reconstruction) in worst.items():
        print(f"| {kind} | {others:.0f} | {activation:.1e} | {reconstruction:.1e} |")
    good = all(others == 0 and max(far) <= TOLERANCE for others, *far in worst.values())
    print(f"\n{'all agree' if good else 'they DIFFER'} to {TOLERANCE:g}")
    return good


def installed(folder: Path) -> Path:
    """Return the Python of an environment with SAELens 6, which is made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing SAELens into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"torch=={torch.__version__}"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "sae-lens>=6,<7"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saelens", type=Path, default=ENVIRONMENT, metavar="ENVIRONMENT")
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)  # within the environment
    arguments = parser.parse_args()
    if arguments.answers:
        write_answers(arguments.answers)
        return
    with tempfile.TemporaryDirectory() as folder:
        # -P: this folder has a kernels.py, which transformers would take for the package of that name.
        command = [installed(arguments.saelens), "-P", __file__, "--answers", folder]
        subprocess.run([str(part) for part in command], check=True)
        sys.exit(not compare(Path(folder)))


if __name__ == "__main__":
    main()
