"""Fingerprints of weights: hexadecimal digits that tell one set from another, whatever path or name it was loaded by."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.float32 import stored_weight
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.dictionaries.base import TranscoderReader
from crosstrace.replacement_model.model import ReplacementModel

# The number of values read from each tensor: training moves all of them, and opening a large transcoder should not cost
# reading it.
_VALUES = 4096
_DIGITS = 16


def weight_fingerprints(model: ReplacementModel) -> dict[str, str]:
    """Return the fingerprints of a model's and its transcoders' weights, under `model` and `transcoders`.

    Example:
        >>> sorted(weight_fingerprints(ReplacementModel.demo()))
        ['model', 'transcoders']
    """
    return {
        "model": model_fingerprint(model.sites),
        "transcoders": transcoders_fingerprint(model.transcoders.reader),
    }


def transcoders_fingerprint(reader: TranscoderReader) -> str:
    """Return the fingerprint of sizes, encoder and decoder biases and thresholds; the dtype in use does not change it."""
    digest = hashlib.sha256(f"{reader.n_features} {reader.d_model} {reader.cross_layer} {reader.reads.value}".encode())
    for layer in reader.layers:
        encoder = reader.encoder(layer)
        for tensor in (encoder.b_enc_f, encoder.threshold_f, reader.bias(layer)):
            digest.update(_bytes(tensor, torch.float32))
    return digest.hexdigest()[:_DIGITS]


def model_fingerprint(sites: ModelSites) -> str:
    """Return the fingerprint of all norms' weights, rounded to bfloat16; the dtype in use does not change it."""
    digest = hashlib.sha256(f"{sites.description.n_layers} {sites.description.d_model}".encode())
    norms = [sites.final_norm]
    for layer in sites.layers:
        norms += [layer.input_norm, layer.post_attention_norm, layer.pre_feedforward_norm, layer.post_feedforward_norm]
    for norm in norms:
        digest.update(_bytes(stored_weight(norm), torch.bfloat16))
    return digest.hexdigest()[:_DIGITS]


def _bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    values = tensor.flatten()[:_VALUES].detach().to(device="cpu", dtype=dtype).contiguous()
    return values.view(torch.uint8).numpy().tobytes()
