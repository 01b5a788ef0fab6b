"""The real Gemma 3 270M, loaded once, and transcoders for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real_model
import torch

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.architectures.gguf import dequantised


@pytest.fixture(scope="session")
def gguf_file() -> Iterator[Path]:
    """The model as a GGUF file; what is made of it is kept in the same cache, that of the command line included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(real_model.cache()))
        try:
            path = real_model.gguf_file()
        except ModuleNotFoundError as error:
            pytest.skip(f"needs the real Gemma 3 270M: {error}; {real_model.HOW_TO_INSTALL}")
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # large enough for two
        yield path
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(gguf_file) -> Path:
    with real_model.alone():
        return dequantised(str(gguf_file))


@pytest.fixture(scope="session")
def gemma(folder) -> Any:
    """The model as `transformers` runs it, in float32."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer(folder) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def recorded(gemma, tokenizer) -> real_model.Recorded:
    return real_model.Recorded(gemma, tokenizer(real_model.PASSAGE)["input_ids"])


@pytest.fixture(scope="session")
def clt(recorded, tmp_path_factory) -> Path:
    return real_model.write_clt(tmp_path_factory.mktemp("real") / "clt" / "width_4608", recorded, 256, 30)


@pytest.fixture(scope="session")
def per_layer(recorded, tmp_path_factory) -> Path:
    return real_model.write_per_layer(tmp_path_factory.mktemp("real") / "transcoder_all", recorded, 1024, 40)


@pytest.fixture(scope="session")
def model(gguf_file, folder, clt) -> ReplacementModel:
    """With the cross-layer transcoder; weights as stored, which is bfloat16."""
    return ReplacementModel.from_pretrained(gguf_file, clt, device="cpu")


@pytest.fixture(scope="session")
def skip_model(folder, per_layer) -> ReplacementModel:
    return ReplacementModel.from_pretrained(folder, per_layer, device="cpu", dtype=torch.float32)
