"""Where things are in Gemma 3: one description that everything else asks.

Letters: L layers, P positions, D d_model, H heads, K kv heads, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crosstrace.replacement_model.hub import told_in_one_line

# Architecture named in config.json -> where its text model lives, as attributes from the top module.
SUPPORTED_ARCHITECTURES = {
    "Gemma3ForCausalLM": "model",
    "Gemma3ForConditionalGeneration": "model.language_model",
}

# Elements of a weight that are widened to float32 at a time: at most 268 MB of them, and where a CPU has few inputs to
# multiply, so that widening costs more than the product, 2 MB, which stay in its cache until they are used.
_WIDENED, _WIDENED_IN_CACHE, _FEW_INPUTS = 1 << 26, 1 << 19, 64


@dataclass(frozen=True)
class Gemma3Description:
    """Sizes, sites and conventions of one Gemma 3 model.

    Attributes:
        n_layers, d_model, n_heads, n_kv_heads, head_dim, vocab_size: L, D, H, K, the head width and V.
        max_positions: the longest prompt, in tokens.
        rms_norm_eps: added to the mean square under every norm's root.
        text_model: attribute path of the text model below the top module.
        excluded_first: how many first positions carry no features and no errors, because what fires there is an
            artefact: 1 (``<bos>``), or 4 for a chat model (``<bos><start_of_turn>user\\n``). Change it with
            :meth:`excluding`.
        windows: for each layer how many last positions it attends to, None for all of them.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    text_model: str
    excluded_first: int = 1
    windows: tuple[int | None, ...] = ()

    @staticmethod
    def from_config(config: Any, source: str, chat: bool = False) -> Gemma3Description:
        """Read the description from a ``transformers`` config.

        Raises:
            ValueError: an architecture other than :data:`SUPPORTED_ARCHITECTURES`, or a variant of Gemma 3 whose
                residual stream is not the linear model that is traced (biases, soft-capped logits, bidirectional).
        """
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise ValueError(
                f"{source}: architecture {architecture} is not supported; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
            )
        text = getattr(config, "text_config", config)
        for key in ("final_logit_softcapping", "attention_bias", "use_bidirectional_attention"):
            if getattr(text, key, None):
                raise ValueError(
                    f"{source}: config has {key}={getattr(text, key)!r}; only Gemma 3 without it can be traced"
                )
        return Gemma3Description(
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
            n_heads=text.num_attention_heads,
            n_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
            rms_norm_eps=text.rms_norm_eps,
            text_model=SUPPORTED_ARCHITECTURES[architecture],
            excluded_first=4 if chat else 1,
            windows=tuple(text.sliding_window if kind == "sliding_attention" else None for kind in text.layer_types),
        )

    def window(self, layer: int) -> int | None:
        """How many last positions a layer attends to, itself included; None: all."""
        return self.windows[layer] if self.windows else None

    def excluding(self, first: int) -> Gemma3Description:
        """The same model with another number of excluded first positions."""
        if first < 0:
            raise ValueError(f"excluded first positions must be 0 or more, not {first}")
        return dataclasses.replace(self, excluded_first=first)


@dataclass(frozen=True)
class Gemma3Layer:
    """One decoder layer's parts."""

    input_norm: nn.Module
    attention: nn.Module
    post_attention_norm: nn.Module
    pre_feedforward_norm: nn.Module
    post_feedforward_norm: nn.Module

    def weight(self, projection: str) -> Tensor:
        """``v_proj`` (K * head_dim, D) or ``o_proj`` (D, H * head_dim), wherever accelerate keeps it."""
        return _weight(self.attention.get_submodule(projection))


def _weight(module: nn.Module) -> Tensor:
    """A module's weight, fetched for the moment where accelerate keeps it in host memory or on disk."""
    weight = module.get_parameter("weight")
    if weight.device.type != "meta":
        return weight
    from accelerate.utils import align_module_device  # only accelerate leaves weights on "meta"

    with align_module_device(module):
        return module.get_parameter("weight").clone()


class Gemma3Sites:
    """The live modules of a loaded model, reached through its description."""

    def __init__(self, model: nn.Module, description: Gemma3Description) -> None:
        self.description = description
        text = model.get_submodule(description.text_model)
        self.text_model = text
        self.embedding = text.get_submodule("embed_tokens")
        self.final_norm = text.get_submodule("norm")
        self._model = model
        self.layers = [
            Gemma3Layer(
                layer.input_layernorm,
                layer.self_attn,
                layer.post_attention_layernorm,
                layer.pre_feedforward_layernorm,
                layer.post_feedforward_layernorm,
            )
            for layer in cast(Any, text.get_submodule("layers"))
        ]

    @property
    def unembedding(self) -> Tensor:
        """(V, D)"""
        return _weight(self._model.get_submodule("lm_head"))

    def embed(self, tokens_p: Tensor) -> Tensor:
        """(P, D) float32: the embedding module's output, its factor sqrt(d_model) included."""
        device = self.embedding.get_parameter("weight").device
        return self.embedding(tokens_p if device.type == "meta" else tokens_p.to(device)).float()

    def run(self, embedded_bpd: Tensor) -> Tensor:
        """Run the text model on embedded tokens (B, P, D); returns the final norm's output (B, P, D)."""
        with float32_arithmetic():
            return self.text_model(inputs_embeds=embedded_bpd, use_cache=False).last_hidden_state

    @cached_property
    def mean_unembedding(self) -> Tensor:
        """(D,) float32 mean of the unembedding's rows."""
        return self.unembedding.mean(0, dtype=torch.float32)

    def unembed(self, normed_xd: Tensor) -> Tensor:
        """Logits (..., V) float32 of final-norm outputs (..., D)."""
        with float32_arithmetic():
            unembedding_vd = self.unembedding
            return F.linear(normed_xd.float().to(unembedding_vd.device), unembedding_vd).to(normed_xd.device)


class _Float32Linear(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].dtype == torch.float32 and args[1].dtype != torch.float32:
            return _widened_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _widened_linear(input_xd: Tensor, weight_od: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` with a narrow weight (O, D) widened to float32 some rows at a time."""
    n_out, d_in = weight_od.shape
    in_cache = weight_od.device.type == "cpu" and input_xd.numel() <= _FEW_INPUTS * d_in
    step = max(1, (_WIDENED_IN_CACHE if in_cache else _WIDENED) // d_in)
    parts = [F.linear(input_xd, weight_od[start : start + step].float()) for start in range(0, n_out, step)]
    out_xo = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return out_xo if bias is None else out_xo + bias


@contextmanager
def float32_arithmetic() -> Iterator[None]:
    """Weights as stored, arithmetic in float32: each matrix is widened just for its product.

    With bfloat16 arithmetic the residual stream carries errors of 1e-2, and the linear model of a prompt would only
    hold to that; widening costs little memory, a piece of a matrix at a time, and makes edges exact for the weights as
    they are.
    """
    with torch.no_grad(), _Float32Linear():
        yield


def gain(norm: nn.Module) -> Tensor:
    """(D,) float32: the factor ``1 + weight`` of Gemma's RMSNorm."""
    return 1.0 + _weight(norm).float()


def norm_weight(norm: nn.Module) -> Tensor:
    """(D,) the weight of a norm as stored, which is its gain less 1."""
    return _weight(norm)


def inverse_rms(x_pd: Tensor, eps: float) -> Tensor:
    """(P, 1) float32: the norm's 1 / rms at every position, as the model computes it."""
    return torch.rsqrt(x_pd.float().pow(2).mean(-1, keepdim=True) + eps)


def load_gemma3(
    source: str, dtype: torch.dtype | None, device: torch.device, device_map: str | dict[str, Any] | None = None
) -> tuple[nn.Module, Any, Gemma3Description]:
    """Load a model and its tokenizer from a folder or the hub, as ``transformers`` reads them.

    Returns:
        the module (evaluation mode, eager attention so that its probabilities can be read), the tokenizer or None
        where the folder has none, and the description.

    Raises:
        ValueError: the architecture is not supported.
        OSError: folder or repository cannot be read; one line that names it.
    """
    import transformers
    from transformers.utils import logging as transformers_logging

    name = _folder_or_name(source)
    placement = {}
    if device_map is not None:
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError("a device map needs accelerate, which is not installed; pip install accelerate")
        placement["device_map"] = device_map
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with told_in_one_line(f"model {source}", name):
            config = transformers.AutoConfig.from_pretrained(name)
            description = Gemma3Description.from_config(config, source)
            architecture = getattr(transformers, config.architectures[0])
            model, report = architecture.from_pretrained(
                name, dtype=dtype or "auto", attn_implementation="eager", output_loading_info=True, **placement
            )
            if report["missing_keys"]:  # transformers would go on with random numbers in their place
                missing = sorted(report["missing_keys"])
                raise ValueError(f"{len(missing)} tensors are missing from its files, the first is {missing[0]}")
            tokenizer = load_tokenizer(name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if str(error).startswith((source, f"model {source}")):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"model {source}: {_first_line(error)}") from error
    finally:
        if bars_were_on:
            transformers_logging.enable_progress_bar()
    if getattr(tokenizer, "chat_template", None):
        description = description.excluding(4)
    model = model.eval().requires_grad_(False)
    return model if placement else model.to(device), tokenizer, description


def load_config(source: str) -> tuple[Any, Gemma3Description]:
    """The ``transformers`` config of a model and its description, without its weights.

    Raises:
        ValueError, OSError: as :func:`load_gemma3`.
    """
    import transformers

    name = _folder_or_name(source)
    try:
        with told_in_one_line(f"model {source}", name):
            config = transformers.AutoConfig.from_pretrained(name)
            description = Gemma3Description.from_config(config, source)
    except (OSError, ValueError) as error:
        if str(error).startswith((source, f"model {source}")):
            raise
        raise type(error)(f"model {source}: {_first_line(error)}") from error
    if getattr(load_tokenizer(name), "chat_template", None):
        description = description.excluding(4)
    return config, description


def load_tokenizer(name: str) -> Any:
    """A model's tokenizer; None where its folder has none."""
    import transformers

    folder = Path(name).expanduser()
    if folder.exists() and not any((folder / f).exists() for f in ("tokenizer.json", "tokenizer.model")):
        return None
    return transformers.AutoTokenizer.from_pretrained(str(folder) if folder.exists() else name)


def _folder_or_name(source: str) -> str:
    """What ``transformers`` is given for a model."""
    folder = Path(source).expanduser()
    if not folder.exists() and (source.startswith(("/", ".", "~")) or source.count("/") != 1):
        raise FileNotFoundError(f"model folder {source} does not exist (a hub model is written org/name)")
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model folder {source} has no config.json")
    return str(folder) if folder.exists() else source


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
