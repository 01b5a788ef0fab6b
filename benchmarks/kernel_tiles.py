"""Tiles, warps and stages of `scores` and `encode` on a GPU, and the share of active features from which dense decoding wins.

    python benchmarks/kernel_tiles.py [--small]

Each setting's answer is compared with that of the settings in use before it is timed; the fastest of some launches counts.
`--small` runs a tiny size, in Triton's interpreter too, to see that the script works.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from kernel_methods import WAYS, Workload

from crosstrace.kernels import encode, encoding_triton, scores, scoring_triton
from crosstrace.kernels.dispatch import VARIABLE

# BLOCK_B, BLOCK_N, BLOCK_K, warps, stages, tiles of K between restarts of the sums
SCORES = [
    (64, 128, 32, 8, 3, 8),
    (64, 128, 32, 4, 3, 8),
    (64, 128, 32, 4, 4, 8),
    (64, 64, 64, 4, 3, 4),
    (64, 64, 32, 4, 3, 8),
    (128, 128, 32, 8, 3, 8),
    (64, 256, 32, 8, 3, 8),
    (128, 64, 32, 4, 3, 8),
    (64, 128, 32, 4, 3, 1 << 20),
]
# BLOCK_P, BLOCK_F, BLOCK_D, warps, stages
ENCODE = [
    (64, 64, 32, 8, 3),
    (64, 64, 32, 4, 3),
    (64, 64, 64, 8, 3),
    (64, 64, 64, 4, 3),
    (64, 64, 64, 4, 4),
    (64, 32, 64, 4, 4),
    (64, 128, 64, 8, 3),
    (64, 64, 128, 4, 3),
]
DENSITIES = (200, 500, 1000, 2000, 4000)


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    function()  # compiles
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        function()
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 1e3 * best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def sweep(
    title: str, module: Any, names: tuple[str, ...], settings: list[tuple[int, ...]], run: Callable[[], torch.Tensor]
) -> None:
    """Time `run` with a kernel's constants set to each of some settings."""
    expected = run()
    in_use = {name: getattr(module, name) for name in (*names, "dot_warps")}
    for setting in settings:
        values = dict(zip((*names[:3], "warps", *names[3:]), setting, strict=True))
        warps = values.pop("warps")
        for name, value in values.items():
            setattr(module, name, value)
        module.dot_warps = lambda *_, warps=warps: warps
        try:
            found = run()
            error = float((found - expected).norm() / expected.norm())
            print(f"{title} {setting}: {milliseconds(run, expected.device):.2f} ms, differs by {error:.1e}", flush=True)
        except Exception as problem:  # a setting that the GPU has no room for
            print(f"{title} {setting}: {type(problem).__name__}", flush=True)
    for name, value in in_use.items():
        setattr(module, name, value)


def density(sizes: dict[str, Any], device: torch.device) -> None:
    """Time sparse and dense decoding side by side."""
    for dtype in (torch.bfloat16, torch.float32):
        for n_positions in sizes["density_positions"]:
            for active in sizes["densities"]:
                size = (sizes["density_layers"], n_positions, sizes["d_model"], sizes["features"])
                ways = WAYS["decode"](Workload(*size, active, 1, dtype, device))
                before = os.environ.get(VARIABLE)
                os.environ[VARIABLE] = "triton"
                sparse, dense = (milliseconds(ways[name], device) for name in ("sparse", "dense"))
                os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
                error = float((ways["sparse"]() - ways["dense"]()).norm() / ways["dense"]().norm())
                assert error < 1e-4, f"decode: relative error {error:.1e}"
                print(
                    f"decode, {dtype}, {n_positions} positions, {active} active: sparse {sparse:.2f} ms, dense {dense:.2f} ms",
                    flush=True,
                )
                del ways
                gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    sizes: dict[str, Any] = {
        "layers": 26,
        "positions": 64,
        "d_model": 1152,
        "features": 10_080,
        "active": 100,
        "rows": 512,
    }
    sizes |= {"density_layers": 13, "density_positions": (64, 512), "densities": DENSITIES, "many": 4096}
    if small:
        sizes |= {"layers": 2, "positions": 2, "d_model": 32, "features": 64, "active": 4, "rows": 2, "many": 16}
        sizes |= {"density_layers": 2, "density_positions": (16,), "densities": (8,)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "torch", torch.__version__)
    torch.manual_seed(0)
    dtypes = (
        (torch.float32,) if small else (torch.bfloat16, torch.float32)
    )  # the interpreter multiplies bfloat16 wrongly
    for dtype in dtypes:
        layers = sizes["layers"] if dtype == torch.bfloat16 or small else 18  # 26 of float32 do not fit
        shape = (layers, *(sizes[name] for name in ("positions", "d_model", "features", "active", "rows")))
        work = Workload(*shape, dtype, device)
        rows, many_pd = work.rows_njd, torch.randn(sizes["many"], work.d_model, device=device)
        only = slice(None) if dtype == torch.bfloat16 else slice(2)

        sweep(
            f"scores, {dtype},",
            scoring_triton,
            ("BLOCK_B", "BLOCK_N", "BLOCK_K", "STAGES", "RUN"),
            SCORES[only],
            lambda work=work, rows=rows: scores(work.activations, rows, work.gradients_bpld),
        )
        for title, run in (
            (
                "encode, all layers,",
                lambda work=work: torch.cat([work.encode_layer(i)[2] for i in range(work.n_layers)]),
            ),
            (
                f"encode, {len(many_pd):,} positions,",
                lambda work=work, x_pd=many_pd: encode(x_pd, work.encoders_df[0], work.bias_f, work.thresholds_f[0])[2],
            ),
        ):
            names = ("BLOCK_P", "BLOCK_F", "BLOCK_D", "STAGES")
            sweep(f"{title} {dtype},", encoding_triton, names, ENCODE[only], run)
        del work, rows, many_pd
        gc.collect()
    density(sizes, device)


if __name__ == "__main__":
    main()
