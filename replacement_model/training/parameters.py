"""What is trained: its shape, its weights, and the scaling of activations that training sees.

Everything is in normalised units: inputs and outputs have mean 0 and, on average over dimensions, mean square 1. Folding
that into the weights is left to `crosstrace.replacement_model.training.export`.

Letters: L trained layers, N tokens, B tokens of a batch, F features of a layer, D d_model (D_in where encoders read), J
layers a feature writes to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crosstrace.kernels import AdamStep, RowGradients, RowMoments, adam_rows
from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.training.settings import TrainingSettings

# Below this standard deviation, relative to the layer's largest, a dimension is taken as constant and not blown up.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class DictionaryShape:
    """The sizes of the dictionary that is trained, and its place in the model.

    Attributes:
        kind: `transcoders`, `clt` or `sae`.
        site: What SAEs read and write; transcoders read the MLP's input and write its output.
        layers: The model's layers it belongs to, ascending; L of them.
        n_features: F.
        d_in: D_in, the width of what encoders read.
        d_out: D, the width of what decoders write.
    """

    kind: Literal["transcoders", "clt", "sae"]
    site: str
    layers: tuple[int, ...]
    n_features: int
    d_in: int
    d_out: int

    @staticmethod
    def of(settings: TrainingSettings, model: ModelDescription) -> DictionaryShape:
        """Return the shape that settings ask for with a model.

        Raises:
            ValueError: A layer that the settings name does not exist.
        """
        layers = tuple(range(model.n_layers)) if settings.layers is None else settings.layers
        if layers[-1] >= model.n_layers:
            raise ValueError(f"layers: {layers[-1]} does not exist; the model has layers 0 to {model.n_layers - 1}")
        heads = settings.kind == "sae" and settings.site == "attn_out"
        width = model.n_heads * model.head_dim if heads else model.d_model
        return DictionaryShape(settings.kind, settings.site, layers, settings.features, width, width)

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def cross_layer(self) -> bool:
        """Whether features write to later layers too."""
        return self.kind == "clt"

    def n_written(self, layer: int) -> int:
        """Return J, the number of layers that features of a trained layer write to."""
        return self.n_layers - layer if self.cross_layer else 1


@dataclass(frozen=True, eq=False)
class Normalisation:
    """The scaling of activations: `(x - mean) * scale`, per layer and dimension.

    The scale is a power of the dimension's standard deviation, times a factor that gives the layer mean square 1. With
    the power 1/2 a dimension that holds nearly all variance, as in Gemma 3's early layers, leaves something to the others.

    Attributes:
        mean_in_ld: (L, D_in).
        scale_in_ld: (L, D_in).
        mean_out_ld: (L, D).
        scale_out_ld: (L, D).
    """

    mean_in_ld: Tensor
    scale_in_ld: Tensor
    mean_out_ld: Tensor
    scale_out_ld: Tensor

    @staticmethod
    def of(inputs_lnd: Tensor, outputs_lnd: Tensor, exponent: float) -> Normalisation:
        """Measure the scaling on a sample.

        Args:
            inputs_lnd: (L, N, D_in) raw inputs.
            outputs_lnd: (L, N, D) raw outputs.
            exponent: The power of the standard deviation that is divided by; 0 uses one scale for a layer.

        Raises:
            ValueError: A layer's activations are not finite, or all the same.
        """
        parts = []
        for name, sample_lnd in (("inputs", inputs_lnd), ("outputs", outputs_lnd)):
            means, scales = [], []
            for layer, sample_nd in enumerate(sample_lnd):
                mean_d = sample_nd.mean(0)
                deviation_d = sample_nd.std(0, correction=0)
                largest = float(deviation_d.max())
                if not largest > 0 or not torch.isfinite(deviation_d).all():
                    raise ValueError(
                        f"{name} of trained layer {layer} have standard deviation {largest}; expected varying, finite ones"
                    )
                deviation_d = deviation_d.clamp_min(_CONSTANT * largest)
                power_d = deviation_d.pow(exponent)
                # The mean square after division: of variances alone, since the mean is gone.
                scales.append(1 / (power_d * (deviation_d / power_d).square().mean().sqrt()))
                means.append(mean_d)
            parts += [torch.stack(means), torch.stack(scales)]
        return Normalisation(*parts)

    def inputs(self, inputs_lbd: Tensor, out: Tensor | None = None) -> Tensor:
        """Return normalised inputs (L, B, D_in)."""
        return torch.sub(inputs_lbd, self.mean_in_ld[:, None], out=out).mul_(self.scale_in_ld[:, None])

    def outputs(self, outputs_lbd: Tensor, out: Tensor | None = None) -> Tensor:
        """Return normalised outputs (L, B, D)."""
        return torch.sub(outputs_lbd, self.mean_out_ld[:, None], out=out).mul_(self.scale_out_ld[:, None])

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name."""
        for name in ("mean_in_ld", "scale_in_ld", "mean_out_ld", "scale_out_ld"):
            yield name, getattr(self, name)


@dataclass(frozen=True, eq=False)
class Parameters:
    """The weights, in normalised units.

    A decoder is stored with the written layer outside, (J, F, D): a step goes through it one written layer at a time.

    Attributes:
        encoder_fd: For each layer (F, D_in).
        encoder_bias_lf: (L, F).
        decoder_jfd: For each layer (J, F, D); part j is written to `layer + j`.
        decoder_bias_ld: (L, D).
        skip_ldd: (L, D_in, D), `y += x @ skip`, or None.
    """

    encoder_fd: list[Tensor]
    encoder_bias_lf: Tensor
    decoder_jfd: list[Tensor]
    decoder_bias_ld: Tensor
    skip_ldd: Tensor | None

    @staticmethod
    def empty(shape: DictionaryShape, skip: bool, device: torch.device) -> Parameters:
        """Return weights of zero."""
        L, F, d_in, d_out = shape.n_layers, shape.n_features, shape.d_in, shape.d_out
        return Parameters(
            [torch.zeros(F, d_in, device=device) for _ in range(L)],
            torch.zeros(L, F, device=device),
            [torch.zeros(shape.n_written(layer), F, d_out, device=device) for layer in range(L)],
            torch.zeros(L, d_out, device=device),
            torch.zeros(L, d_in, d_out, device=device) if skip else None,
        )

    def decoder_norms(self) -> Tensor:
        """Return the norms (L, F) of what features write, over all layers they write to."""
        return torch.stack([_norms(decoder_jfd) for decoder_jfd in self.decoder_jfd])

    def rows_ujd(self, features: slice = slice(None)) -> list[Tensor]:
        """Return the decoders as rows (F, J, D), views, of all features or some."""
        return [decoder_jfd[:, features].transpose(0, 1) for decoder_jfd in self.decoder_jfd]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name."""
        for layer, encoder_fd in enumerate(self.encoder_fd):
            yield f"encoder_fd.{layer}", encoder_fd
        for layer, decoder_jfd in enumerate(self.decoder_jfd):
            yield f"decoder_jfd.{layer}", decoder_jfd
        yield "encoder_bias_lf", self.encoder_bias_lf
        yield "decoder_bias_ld", self.decoder_bias_ld
        if self.skip_ldd is not None:
            yield "skip_ldd", self.skip_ldd


def _norms(decoder_jfd: Tensor) -> Tensor:
    """Norms (F,) over J and D, without a copy of the decoder."""
    return torch.stack([torch.linalg.vector_norm(part_fd, dim=1) for part_fd in decoder_jfd]).square_().sum(0).sqrt_()


class WholeMoments:
    """Adam's state of a weight of which every row (L, ...) has a gradient in every step."""

    def __init__(self, weight: Tensor) -> None:
        self.rows = RowMoments.zeros_like(weight)

    def step(self, weight: Tensor, gradient: Tensor, adam: AdamStep) -> None:
        """Update a weight, in place, with its gradient."""
        touched = torch.arange(weight.shape[0], device=weight.device)
        adam_rows(weight, RowGradients(touched, gradient), self.rows, adam)


class Moments:
    """Adam's state: encoders, their biases and decoders by row; decoder biases and skip connections whole."""

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        """Make the state before the first step.

        Args:
            parameters: The weights.
            dtype: Of encoders' and decoders' moments; the small ones are float32.
        """
        self.encoder = [RowMoments.zeros_like(encoder_fd, dtype) for encoder_fd in parameters.encoder_fd]
        self.decoder = [RowMoments.zeros_like(rows_fjd, dtype) for rows_fjd in parameters.rows_ujd()]
        self.encoder_bias = [RowMoments.zeros_like(bias_f) for bias_f in parameters.encoder_bias_lf]
        self.decoder_bias = WholeMoments(parameters.decoder_bias_ld)
        self.skip = None if parameters.skip_ldd is None else WholeMoments(parameters.skip_ldd)

    def forget(self, layer: int, features_u: Tensor) -> None:
        """Set some features of a layer back to the state before their first step."""
        for moments in (self.encoder, self.decoder, self.encoder_bias):
            moments[layer].forget(features_u)

    def clear(self) -> None:
        """Go back to the state before the first step."""
        for _, tensor in self.named():
            tensor.zero_()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name."""
        groups = {"encoder": self.encoder, "decoder": self.decoder, "encoder_bias": self.encoder_bias}
        groups["decoder_bias"] = [self.decoder_bias.rows]
        if self.skip is not None:
            groups["skip"] = [self.skip.rows]
        for name, moments in groups.items():
            for layer, state in enumerate(moments):
                for part in ("first", "second", "steps"):
                    yield f"adam.{name}.{layer}.{part}", getattr(state, part)
