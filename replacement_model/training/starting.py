"""Where features start: at data points, or at random.

A data-point start: the encoder row is a token's input, with noise, and the decoder writes a part of what that token's
output was, so that a feature begins near something that occurs. Dead features start again in the same way, from what the
batch's tokens lack.

Letters: L layers, N tokens of a sample, F features of a layer, U features that start, D d_model, J layers a feature writes
to.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crosstrace.replacement_model.training.parameters import Parameters
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
    for layer in range(len(parameters.encoder_fd)):
        if settings.start == "data":
            n_features, n_tokens = parameters.encoder_fd[layer].shape[0], inputs_lnd.shape[1]
            if n_tokens >= n_features:
                picked = torch.randperm(n_tokens, generator=generator)[:n_features]
            else:  # more features than data points: some points start several, and noise tells them apart
                picked = torch.randint(n_tokens, (n_features,), generator=generator)
            picked = picked.to(inputs_lnd.device)

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
        else:
            _start_uniform(parameters, layer, settings, generator)


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
    """Start some features of a layer at data points, in place; their biases become 0.

    Args:
        parameters: The weights.
        layer: The layer.
        features: (U,) int64 indices, or a slice.
        points_ud: (U, D_in) normalised inputs.
        target_of: For a layer l' what the features should write there at their point, (U, D).
        scale: The share of it that they do.
        settings: Shares of data, noise, own and later layers.
        generator: Where noise comes from.
    """
    noise_ud = torch.randn(points_ud.shape, generator=generator).to(points_ud.device)
    encoder_ud = settings.start_data_share * _unit(points_ud) + settings.start_noise * _unit(noise_ud)
    parameters.encoder_fd[layer][features] = encoder_ud
    parameters.encoder_bias_lf[layer, features] = 0
    # At its point a feature has this pre-activation; small ones would make large decoders.
    fires_u1 = (points_ud * encoder_ud).sum(1, keepdim=True).clamp_min(1)
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
