"""Where features start: at data points, at random, or, for a cross-layer transcoder, at those of per-layer ones.

A data-point start: the encoder row is a token's input, with noise, and the decoder writes a part of what that token's
output was, so that a feature begins near something that occurs. Dead features start again in the same way, from what the
batch's tokens lack. Points are drawn evenly, or far from one another as k-means++ draws its centres (Arthur & Vassilvitskii
2007, "k-means++: The Advantages of Careful Seeding"), so that what occurs in few tokens has a feature of its own as well.

Letters: L layers, N tokens of a sample, F features of a layer, U features that start, D d_model, J layers a feature writes
to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.base import ActivationKind, TranscoderReader
from crosstrace.replacement_model.dictionaries.readers import open_transcoders
from crosstrace.replacement_model.training.parameters import DictionaryShape, Normalisation, Parameters
from crosstrace.replacement_model.training.settings import TrainingSettings


def start(
    parameters: Parameters,
    inputs_lnd: Tensor,
    outputs_lnd: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> None:
    """Start every feature, in place.

    Args:
        parameters: The weights.
        inputs_lnd: (L, N, D_in) normalised inputs of a sample.
        outputs_lnd: (L, N, D) its normalised outputs.
        settings: How.
        generator: Where randomness comes from.
    """
    for layer, encoder_fd in enumerate(parameters.encoder_fd):
        if settings.start == "uniform":
            _start_uniform(parameters, layer, settings, generator)
        else:
            draw = _far_apart if settings.start == "far-apart" else _evenly
            picked = draw(inputs_lnd[layer], len(encoder_fd), generator).to(inputs_lnd.device)

            def written_at(written: int, picked: Tensor = picked) -> Tensor:
                return outputs_lnd[written, picked]

            start_features(
                parameters,
                layer,
                slice(None),
                inputs_lnd[layer, picked],
                written_at,
                settings.start_decoder_scale,
                settings,
                generator,
            )


def _evenly(points_nd: Tensor, n_drawn: int, generator: torch.Generator) -> Tensor:
    """Draw points, none twice while there are enough: beyond that some start several features, told apart by noise."""
    if len(points_nd) >= n_drawn:
        return torch.randperm(len(points_nd), generator=generator)[:n_drawn]
    return torch.randint(len(points_nd), (n_drawn,), generator=generator)


def _far_apart(points_nd: Tensor, n_drawn: int, generator: torch.Generator) -> Tensor:
    """Draw points one by one, in proportion to the squared distance to the nearest one drawn (ibid., section 2.2).

    No point is drawn twice, nor one like it, while there are others; then the rest is drawn evenly.
    """
    squares_n = points_nd.square().sum(1)
    distances_n = torch.full_like(squares_n, torch.inf)
    picked: list[int] = []
    while len(picked) < n_drawn:
        weights_n = distances_n.cpu() if picked else torch.ones(len(points_nd))
        if not weights_n.any():
            return torch.cat([torch.tensor(picked), _evenly(points_nd, n_drawn - len(picked), generator)])
        last = int(torch.multinomial(weights_n, 1, generator=generator))
        picked.append(last)
        to_last_n = squares_n + squares_n[last] - 2 * (points_nd @ points_nd[last])
        # What rounding leaves of a distance of 0.
        to_last_n[to_last_n < 1e-5 * squares_n[last]] = 0
        distances_n = torch.minimum(distances_n, to_last_n)
    return torch.tensor(picked)


def start_features(
    parameters: Parameters,
    layer: int,
    features: Tensor | slice,
    points_ud: Tensor,
    target_of: Callable[[int], Tensor],
    scale: float,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> None:
    """Start some features of a layer at data points, in place.

    Their biases take away `start_margin` of what their rows give at their points, so that they are active near them only.

    Args:
        parameters: The weights.
        layer: The layer.
        features: (U,) int64 indices, or a slice.
        points_ud: (U, D_in) normalised inputs.
        target_of: For a layer l' what the features should write there at their point, (U, D).
        scale: The share of it that they do.
        settings: Shares of data, noise, own and later layers, and the margin.
        generator: Where noise comes from.
    """
    noise_ud = torch.randn(points_ud.shape, generator=generator).to(points_ud.device)
    encoder_ud = settings.start_data_share * _unit(points_ud) + settings.start_noise * _unit(noise_ud)
    parameters.encoder_fd[layer][features] = encoder_ud
    at_point_u1 = (points_ud * encoder_ud).sum(1, keepdim=True)
    bias_u1 = -settings.start_margin * at_point_u1.clamp_min(0)
    parameters.encoder_bias_lf[layer, features] = bias_u1[:, 0]
    # At its point a feature has this pre-activation; small ones would make large decoders.
    fires_u1 = (at_point_u1 + bias_u1).clamp_min(1)
    for j, decoder_fd in enumerate(parameters.decoder_jfd[layer]):
        share = settings.start_later_layers if j else settings.start_own_layer
        decoder_fd[features] = (scale * share) * target_of(layer + j) / fires_u1


def _start_uniform(parameters: Parameters, layer: int, settings: TrainingSettings, generator: torch.Generator) -> None:
    """Decoder directions uniform in a cube, of norm `start_decoder_scale` in all; encoders are the unit directions.

    Where a dictionary writes what it reads, or as wide a site, encoders are the decoder's own-layer part, transposed.
    """
    encoder_fd, decoder_jfd = parameters.encoder_fd[layer], parameters.decoder_jfd[layer]
    for decoder_fd in decoder_jfd:
        decoder_fd.copy_(torch.rand(decoder_fd.shape, generator=generator) * 2 - 1)
    if encoder_fd.shape == decoder_jfd[0].shape:
        encoder_fd.copy_(_unit(decoder_jfd[0]))
    else:
        encoder_fd.copy_(_unit(torch.rand(encoder_fd.shape, generator=generator) * 2 - 1))
    norms_f = decoder_jfd.square().sum((0, 2)).sqrt()
    decoder_jfd.mul_((settings.start_decoder_scale / norms_f)[None, :, None])


def _unit(x_ud: Tensor) -> Tensor:
    return x_ud / x_ud.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def start_from_transcoders(
    parameters: Parameters, scaling: Normalisation, reference: str, shape: DictionaryShape
) -> Tensor:
    """Start a cross-layer transcoder from per-layer ones, in place.

    Gemma Scope 2's technical report says that its CLTs start from single-layer transcoders by Matryoshka prefixes, and no
    more. Taken here as: of each layer's transcoder, trained with Matryoshka prefixes, the first F features, which reconstruct
    alone; they write to their own layer what they did, and 0 to later ones. With the prefixes come the encoder's and
    decoder's biases, thresholds, and the skip connection if both have one.

    Args:
        parameters: The weights.
        scaling: The scaling that they are in.
        reference: The transcoders, as `open_transcoders` takes them.
        shape: The sizes of the CLT.

    Returns:
        The thresholds (L, F).

    Raises:
        ValueError: The transcoders cross layers, have other sizes, fewer features, another site or no thresholds.
        FileNotFoundError: There are none.
    """
    reader = open_transcoders(reference)
    _check_transcoders(reader, reference, shape)
    thresholds = []
    for layer in range(shape.n_layers):
        scale_in_d, scale_out_d = scaling.scale_in_ld[layer], scaling.scale_out_ld[layer]
        mean_in_d, first = scaling.mean_in_ld[layer], slice(shape.n_features)
        encoder = reader.encoder(layer)
        w_enc_df = encoder.w_enc_df[:, first].float().to(scale_in_d.device)
        parameters.encoder_fd[layer].copy_(w_enc_df.T / scale_in_d)
        parameters.encoder_bias_lf[layer] = encoder.b_enc_f[first].to(scale_in_d.device) + mean_in_d @ w_enc_df
        own_fd = reader.decoder_rows(layer, torch.arange(shape.n_features))[:, 0].float()
        parameters.decoder_jfd[layer][0] = own_fd.to(scale_in_d.device) * scale_out_d
        bias_d, skip_dd = reader.bias(layer).to(scale_in_d.device), reader.skip(layer)
        if skip_dd is not None:
            skip_dd = skip_dd.float().to(scale_in_d.device)
            # Without a skip connection of its own the CLT keeps what it gives on average.
            bias_d = bias_d + mean_in_d @ skip_dd
            if parameters.skip_ldd is not None:
                parameters.skip_ldd[layer] = skip_dd * scale_out_d / scale_in_d[:, None]
        parameters.decoder_bias_ld[layer] = (bias_d - scaling.mean_out_ld[layer]) * scale_out_d
        thresholds.append(encoder.threshold_f[first].to(scale_in_d.device))
    return torch.stack(thresholds)


def _check_transcoders(reader: TranscoderReader, reference: str, shape: DictionaryShape) -> None:
    if not shape.cross_layer:
        raise ValueError(f"initialise_from: a CLT starts from transcoders, not {shape.kind}")
    if reader.cross_layer:
        raise ValueError(f"initialise_from: {reference} holds a cross-layer transcoder; expected per-layer ones")
    if reader.reads is not Site.MLP_INPUT_NORMED:
        raise ValueError(
            f"initialise_from: {reference} reads {reader.reads.value}; expected {Site.MLP_INPUT_NORMED.value}"
        )
    if reader.activation.kind is not ActivationKind.JUMP_RELU:
        raise ValueError(f"initialise_from: {reference} has activation {reader.activation}; expected JumpReLU")
    sizes = (("layers", reader.n_layers, shape.n_layers), ("d_model", reader.d_model, shape.d_in))
    for what, found, expected in sizes:
        if found != expected:
            raise ValueError(f"initialise_from: {reference} has {what} {found}; expected {expected}")
    if min(reader.n_features) < shape.n_features:
        raise ValueError(
            f"initialise_from: {reference} has {min(reader.n_features)} features; expected at least {shape.n_features}"
        )
