"""Compile every Triton kernel for GPUs that need not be there; print registers, spills and shared memory.

    python benchmarks/kernel_resources.py [--arch 80 90] [--dtype bfloat16 float32 float16] [--csv FILE]

The arguments are those of Gemma 3 1B's size: tensors on 16 bytes, d_model a multiple of 16, contiguous encoder.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported: it compiles or interprets, never both

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crosstrace.kernels import decoding_triton, encoding_triton, scoring_triton
from crosstrace.kernels.backward import rows_triton
from crosstrace.kernels.triton_parts import TRITON_DTYPES, dot_settings, dot_warps

POINTER_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass
class Case:
    """One kernel as one of its callers would launch it."""

    kernel: Any
    variant: str
    types: dict[str, str]  # of the arguments that are no constants; "/16" marks a multiple of 16
    constants: dict[str, Any]
    options: dict[str, int]


def cases(dtype: torch.dtype, arch: int) -> list[Case]:
    """Every kernel, for weights of a dtype and float32 inputs, as it is launched on a GPU of sm_`arch`."""
    weight = POINTER_NAMES[dtype]
    exact = dot_settings(torch.float32, dtype, exact=True) | {"IN_FLOAT": dtype != torch.bfloat16}
    found = []
    for stored, constant in (("(D, F)", "stride_wf"), ("(F, D)", "stride_wd")):
        other = "stride_wd" if constant == "stride_wf" else "stride_wf"
        names = ["x", "w", "bias", "threshold", "features", "values", "counts"]
        kinds = ["*fp32", weight, "*fp32", "*fp32", "*i32", "*fp32", "*i64"]
        types = {f"p_{name}": f"{kind}/16" for name, kind in zip(names, kinds, strict=True)}
        types |= {"n_positions": "i32/16", "d_model": "i32/16", "n_features": "i32/16", "n_splits": "i32"}
        types |= {"split_width": "i32/16", "capacity": "i32/16", "stride_xp": "i32/16", other: "i32/16"}
        blocks = {name: getattr(encoding_triton, name) for name in ("BLOCK_P", "BLOCK_F", "BLOCK_D")}
        constants = {"stride_xd": 1, constant: 1, **exact, **blocks}
        options = {"num_warps": dot_warps(dtype, divmod(arch, 10)), "num_stages": encoding_triton.STAGES}
        found.append(Case(encoding_triton.encode_slab_kernel, f"w {stored}", types, constants, options))
    names = ["features", "values", "stops", "counts", "out_positions", "out_features", "out_values"]
    kinds = ["*i32", "*fp32", "*i64", "*i64", "*i64", "*i64", "*fp32"]
    types = {f"p_{name}": f"{kind}/16" for name, kind in zip(names, kinds, strict=True)}
    types |= {"n_splits": "i32", "capacity": "i32/16"}
    found.append(Case(encoding_triton.encode_pack_kernel, "", types, {"BLOCK_C": 16}, {"num_warps": 1}))

    names = ["out", "addresses", "values", "layers", "written", "strides", "offsets", "first_layers"]
    kinds = ["*fp32", "*i64", "*fp32", "*i32", "*i32", "*i64", "*i64", "*i32"]
    types = {f"p_{name}": f"{kind}/16" for name, kind in zip(names, kinds, strict=True)}
    types |= {"n_layers": "i32", "n_positions": "i32/16", "d_model": "i32/16", "width": "i32/16"}
    types |= {"stride_out_l": "i32/16", "stride_out_p": "i32/16"}
    for variant, flat, accumulate in (
        ("all layers", True, False),
        ("strided", False, False),
        ("accumulate", True, True),
    ):
        if not flat and dtype != torch.float32:
            continue  # strided rows are those of training
        constants = {"DTYPE": TRITON_DTYPES[dtype], "ALIGNED": True, "FLAT": flat, "ACCUMULATE": accumulate}
        block_e = decoding_triton.BLOCK_E if flat else decoding_triton.BLOCK_E // 2
        constants |= {"BLOCK_E": block_e, "BLOCK_X": decoding_triton.BLOCK_X}
        found.append(
            Case(decoding_triton.decode_kernel, variant, types, constants, {"num_warps": decoding_triton.WARPS})
        )

    names = ["out", "gradients", "activations", "rows_of", "layers", "tiles", "tops"]
    kinds = ["*fp32", "*fp32", "*fp32", "*i64", "*i64", "*i64", "*i64"]
    types = {f"p_{name}": f"{kind}/16" for name, kind in zip(names, kinds, strict=True)}
    types |= {"n_rows": "i32/16", "n_entries": "i32", "n_positions": "i32/16", "d_model": "i32/16"}
    types |= {"stride_gb": "i64/16", "stride_gp": "i32/16", "n_tiles_b": "i32"}
    for level in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(level)
        settings = dot_settings(torch.float32, dtype, exact=False) | {"IN_FLOAT": dtype != torch.bfloat16}
        constants = {"DTYPE": TRITON_DTYPES[dtype], "ALIGNED": True, "INDEXED": False, "EVEN_K": True, **settings}
        constants |= {name: getattr(scoring_triton, name) for name in ("BLOCK_B", "BLOCK_N", "BLOCK_K", "RUN")}
        options = {"num_warps": dot_warps(dtype, divmod(arch, 10)), "num_stages": scoring_triton.STAGES}
        found.append(Case(scoring_triton.scores_kernel, level, types, constants, options))
    torch.set_float32_matmul_precision("highest")
    return found + backward_cases(dtype)


def backward_cases(dtype: torch.dtype) -> list[Case]:
    """Those of training, whose rows are float32; a narrow dtype stands for the moments."""
    kinds = dict.fromkeys(("out", "source", "weights", "sizes", "roots"), "*fp32/16")
    kinds |= dict.fromkeys(("positions", "offsets", "features", "layers", "table"), "*i64/16")
    floats = ("beta1", "beta2", "epsilon", "learning_rate", "log_beta1", "log_beta2")
    scalars = dict.fromkeys(("n_entries", "n_written", "n_touched"), "i32") | dict.fromkeys(floats, "fp32")
    constants = {
        "MOMENTS": TRITON_DTYPES[torch.bfloat16 if dtype == torch.bfloat16 else torch.float32],
        "IN_BITS": False,
        "ALIGNED": True,
        "COLUMNS": 9,
        "BLOCK": rows_triton.BLOCK_R,
        "BLOCK_E": rows_triton.BLOCK_E,
        "BLOCK_D": rows_triton.BLOCK_D,
    }
    found = []
    for kernel in (
        rows_triton.row_gradients_kernel,
        rows_triton.count_steps_kernel,
        rows_triton.adam_rows_kernel,
        rows_triton.entry_products_kernel,
    ):
        names = [name for name in kernel.arg_names if name not in constants]
        types = {name: kinds[name[2:]] if name.startswith("p_") else scalars.get(name, "i32/16") for name in names}
        own = {name: value for name, value in constants.items() if name in kernel.arg_names}
        found.append(Case(kernel, "", types, own, {"num_warps": rows_triton.WARPS}))
    return found


def compiled(case: Case, arch: int) -> Any:
    """The kernel for ``sm_<arch>``."""
    names = case.kernel.arg_names
    missing = set(names) ^ (set(case.types) | set(case.constants))
    assert not missing, f"{case.kernel.__name__} {case.variant}: {missing}"
    signature = {name: case.types[name].removesuffix("/16") if name in case.types else "constexpr" for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if case.types.get(name, "").endswith("/16")
    }
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=case.options)


def resources(program: Any) -> dict[str, int]:
    """Registers a thread, spilled bytes, loads wider than 4 bytes, tensor-core instructions; from the machine code."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()

        def run(tool: str, *flags: str) -> str:
            return subprocess.run([tools / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout

        usage = run("cuobjdump", "-res-usage")
        code = run("nvdisasm")
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    assert registers
    assert stack
    return {
        "registers": int(registers[1]),
        "stack_bytes": int(stack[1]),
        "spill_instructions": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "loads_16_byte": len(re.findall(r"\b(?:LDG\S*|LDGSTS\S*)\.128\b", code)),
        "tensor_core_instructions": len(re.findall(r"\b(?:HMMA|HGMMA|QGMMA)\b", code)),
        "shared_bytes": program.metadata.shared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32", "float16"])
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.dtype:
        for arch in arguments.arch:
            for case in cases(getattr(torch, name), arch):
                row = {"kernel": case.kernel.__name__, "variant": case.variant, "dtype": name, "arch": f"sm_{arch}"}
                rows.append(row | resources(compiled(case, arch)))
                print(*rows[-1].values(), sep=" | ", flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
