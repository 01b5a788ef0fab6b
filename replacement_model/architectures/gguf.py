"""Gemma 3 in llama.cpp's GGUF format: dequantised once into a folder of the cache, in Hugging Face's layout.

Everything in the file is used or refused by name: a setting or a tensor that is not known could change what the model
computes. Only a vision tower is left out, which tracing never reads.

Dequantised weights are stored in bfloat16, the type that Gemma 3 is published in; a file whose matrices are all float32
stays float32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import gguf

# GGUF's names for the tensors of a layer, and those of `transformers`. llama.cpp stores the gains of norms as 1 + weight.
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_VISION = ("v.", "mm.", "vision.")  # first parts of tensors and keys of a vision tower
_LAYERS_OF_27B = 62  # the one size whose queries are not scaled by the head's width
_SAMPLES, _SAMPLE_BYTES, _HEAD_BYTES = 256, 4096, 1 << 20


def is_gguf(source: str) -> bool:
    """Tell whether a model's name is that of a GGUF file."""
    return source.lower().endswith(".gguf")


def cache_folder() -> Path:
    """Return the folder that dequantised models are kept in: `$XDG_CACHE_HOME/crosstrace`, or `~/.cache/crosstrace`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crosstrace"


def dequantised_place(source: str) -> Path:
    """Return the folder of the cache that a GGUF file's model goes to; it exists once the file has been dequantised.

    The name comes from the file's size, time of change and samples of its bytes: another file is another folder.

    Args:
        source: A GGUF file.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"model file {source} does not exist")
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for sample in range(_SAMPLES):
            file.seek(status.st_size * sample // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return cache_folder() / f"{path.stem}-{digest.hexdigest()[:16]}"


def dequantised(source: str) -> Path:
    """Dequantise a GGUF file into the cache, unless it is there already.

    Args:
        source: A GGUF file of Gemma 3.

    Returns:
        A folder in Hugging Face's layout: config, weights in shards, tokenizer.

    Raises:
        ValueError: The file is damaged, not of Gemma 3, or holds a setting or a tensor that is not known; or the library
            that reads it is not installed.
        OSError: The file does not exist, or the cache cannot be written.

    Example:
        >>> folder = dequantised("gemma-3-270m-q4_k_m.gguf")
    """
    place = dequantised_place(source)
    if place.is_dir():
        return place
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{source}: reading .gguf needs gguf, which is not installed; pip install gguf")
    partial = place.with_name(f".{place.name}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        with _damage_in_one_line(source):
            _write_folder(Path(source).expanduser(), partial)
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


@contextmanager
def _damage_in_one_line(source: str) -> Iterator[None]:
    """What reading a damaged file raises, numpy's complaints about its ends among them."""
    try:
        yield
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        if str(error).startswith(source):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source}: damaged or cut short, or not a GGUF file ({reason})") from error


def _write_folder(path: Path, folder: Path) -> None:
    """Write config, weights and tokenizer; the header first, so that a wrong file costs no time."""
    import gguf

    class Reader(gguf.GGUFReader):
        """Keeps the file as a plain array: each of a memory map's million small slices costs five times as much."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(type(mapped).__base__)

    if path.stat().st_size < 24 or path.open("rb").read(4) != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it does not start with the letters GGUF")
    reader = Reader(path)
    names = {tensor.name: _name_of(tensor.name, path) for tensor in reader.tensors}
    config = _config(reader, path)
    expected = _expected(config.num_hidden_layers, tied=config.tie_word_embeddings)
    present = {name for name in names.values() if name is not None}
    if missing := expected - present:
        raise ValueError(f"{path}: {len(missing)} tensors are missing, the first is {_gguf_name(min(missing))}")
    if extra := present - expected:
        raise ValueError(
            f"{path}: tensor {_gguf_name(min(extra))} is of a layer that the model does not have "
            f"(it has {config.num_hidden_layers})"
        )
    config.save_pretrained(folder)
    _write_weights(reader, names, getattr(torch, str(config.dtype).removeprefix("torch.")), folder, path)
    _write_tokenizer(reader, path, folder)


def _name_of(name: str, path: Path) -> str | None:
    """The name in `transformers` of one of the file's tensors; None for those of a vision tower."""
    if name.startswith(_VISION):
        return None
    if name in _TOP_TENSORS:
        return _TOP_TENSORS[name]
    if (match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) and match[2] in _LAYER_TENSORS:
        return f"model.layers.{match[1]}.{_LAYER_TENSORS[match[2]]}.weight"
    raise ValueError(f"{path}: tensor {name} is not one of Gemma 3's")


def _gguf_name(name: str) -> str:
    """The file's name of a tensor, for messages."""
    for ours, theirs in _TOP_TENSORS.items():
        if theirs == name:
            return ours
    _, _, layer, rest = name.split(".", 3)
    part = next(ours for ours, theirs in _LAYER_TENSORS.items() if f"{theirs}.weight" == rest)
    return f"blk.{layer}.{part}.weight"


def _expected(n_layers: int, tied: bool) -> set[str]:
    tops = set(_TOP_TENSORS.values()) - ({"lm_head.weight"} if tied else set())
    return tops | {f"model.layers.{i}.{part}.weight" for i in range(n_layers) for part in _LAYER_TENSORS.values()}


def _config(reader: gguf.GGUFReader, path: Path) -> Any:
    """The `transformers` config. What a file does not say is what llama.cpp assumes for Gemma 3."""
    import transformers

    values = _Settings(reader, path)
    layers, heads = values.take("block_count"), values.take("attention.head_count")
    width, head_dim = values.take("embedding_length"), values.take("attention.key_length", 256)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := values.take(key, head_dim)) != head_dim:
            raise ValueError(f"{path}: gemma3.{key} is {size}; expected the width of a head, {head_dim}")
    pattern = values.take("attention.sliding_window_pattern", 6)
    full = [(i + 1) % pattern == 0 for i in range(layers)] if isinstance(pattern, int) else [not x for x in pattern]
    full_rope = {"rope_type": "default", "rope_theta": values.take("rope.freq_base", 1e6)}
    scaling, factor = values.take("rope.scaling.type", "none"), values.take("rope.scaling.factor", 1.0)
    if scaling not in ("none", "linear"):
        raise ValueError(f"{path}: gemma3.rope.scaling.type is {scaling!r}; expected none or linear")
    if scaling == "linear" and factor != 1:
        full_rope |= {"rope_type": "linear", "factor": factor}
    special = {
        ours: reader.fields[key].contents()
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if (key := f"tokenizer.ggml.{theirs}_token_id") in reader.fields
    }
    shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ValueError(f"{path}: tensor token_embd.weight is missing")
    vocabulary = values.take("vocab_size", shapes["token_embd.weight"][0])
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    config = transformers.Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        dtype="float32" if kinds == {"F32"} else "bfloat16",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=values.take("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=values.take("attention.head_count_kv"),
        head_dim=head_dim,
        query_pre_attn_scalar=width // heads if layers == _LAYERS_OF_27B else head_dim,
        rms_norm_eps=float(f"{values.take('attention.layer_norm_rms_epsilon'):.6g}"),  # a float32: 9.999999974e-07
        max_position_embeddings=values.take("context_length"),
        sliding_window=values.take("attention.sliding_window"),
        layer_types=["full_attention" if whole else "sliding_attention" for whole in full],
        rope_parameters={
            "full_attention": full_rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": values.take("rope.freq_base_swa", 1e4)},
        },
        final_logit_softcapping=values.take("final_logit_softcapping", None),
        attn_logit_softcapping=values.take("attn_logit_softcapping", None),
        tie_word_embeddings="output.weight" not in shapes,
        **{f"{name}_token_id": token for name, token in special.items()},
    )
    values.all_taken()
    return config


class _Settings:
    """The file's `gemma3.*` settings; each must be taken."""

    def __init__(self, reader: gguf.GGUFReader, path: Path) -> None:
        architecture = (
            reader.fields["general.architecture"].contents() if "general.architecture" in reader.fields else None
        )
        if architecture != "gemma3":
            raise ValueError(f"{path}: general.architecture is {architecture!r}; expected 'gemma3'")
        self._path = path
        self._left = {
            key.removeprefix("gemma3."): field for key, field in reader.fields.items() if key.startswith("gemma3.")
        }

    def take(self, key: str, *default: Any) -> Any:
        if key in self._left:
            return self._left.pop(key).contents()
        if not default:
            raise ValueError(f"{self._path}: setting gemma3.{key} is missing")
        return default[0]

    def all_taken(self) -> None:
        if left := [key for key in self._left if not key.startswith(_VISION)]:
            raise ValueError(f"{self._path}: setting gemma3.{left[0]} is not known")


def _write_weights(
    reader: gguf.GGUFReader, names: dict[str, str | None], dtype: torch.dtype, folder: Path, path: Path
) -> None:
    """Write a shard for each layer and one for the rest, so that memory holds no more than one."""
    from safetensors.torch import save_file

    shards: dict[str, list[Any]] = {}
    for tensor in reader.tensors:
        name = names[tensor.name]
        if name is not None:
            parts = name.split(".")
            shards.setdefault(parts[2] if parts[1] == "layers" else "", []).append(tensor)
    places: dict[str, str] = {}
    for number, tensors in enumerate(shards.values(), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard = {str(names[tensor.name]): _weights(tensor, dtype, path) for tensor in tensors}
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _weights(tensor: gguf.ReaderTensor, dtype: torch.dtype, path: Path) -> Tensor:
    import gguf

    try:
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError:
        raise ValueError(
            f"{path}: tensor {tensor.name} is of the type {tensor.tensor_type.name}, which gguf cannot read"
        ) from None
    if not torch.isfinite(values).all():
        raise ValueError(f"{path}: tensor {tensor.name} holds NaN or infinity")
    # A norm's weight is the small difference: taken before it is rounded.
    return ((values - 1) if tensor.name.endswith("norm.weight") else values).to(dtype).contiguous()


def _write_tokenizer(reader: gguf.GGUFReader, path: Path, folder: Path) -> None:
    """Rebuild the tokenizer as `transformers` does: the merges, which a file need not hold, come from the vocabulary."""
    import transformers

    tokenizer = transformers.GemmaTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if (template := reader.fields.get("tokenizer.chat_template")) is not None:
        tokenizer.chat_template = template.contents()
    tokenizer.save_pretrained(folder)
