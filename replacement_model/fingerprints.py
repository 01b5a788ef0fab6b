"""A few hexadecimal digits that tell one set of weights from another, whatever path or name it was loaded by."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from crosstrace.replacement_model.architectures.float32 import stored_weight
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.dictionaries.readers import TranscoderReader
from crosstrace.replacement_model.model import ReplacementModel

# Values read of each tensor: training moves all of them, and opening a large transcoder should not cost reading it.
_VALUES = 4096
_DIGITS = 16


def weight_fingerprints(model: ReplacementModel) -> dict[str, str]:
    """Of a model's and its transcoders' weights, under ``model`` and ``transcoders``."""
    return {
        "model": model_fingerprint(model.sites),
        "transcoders": transcoders_fingerprint(model.transcoders.reader),
    }


def transcoders_fingerprint(reader: TranscoderReader) -> str:
    """Of sizes, encoder and decoder biases and thresholds: the same for every dtype they are used in."""
    digest = hashlib.sha256(f"{reader.n_features} {reader.d_model} {reader.cross_layer} {reader.reads.value}".encode())
    for layer in reader.layers:
        encoder = reader.encoder(layer)
        for tensor in (encoder.b_enc_f, encoder.threshold_f, reader.bias(layer)):
            digest.update(_bytes(tensor, torch.float32))
    return digest.hexdigest()[:_DIGITS]


def model_fingerprint(sites: ModelSites) -> str:
    """Of the norms' gains in all layers, rounded to bfloat16: the same for every dtype the weights are used in."""
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
