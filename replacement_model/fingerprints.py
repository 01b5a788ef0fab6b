"""Fingerprints of weights: hexadecimal digits that tell one set from another, whatever path or name it was loaded by.

They are made of samples, so that opening a large transcoder does not cost reading it: training moves all values, and a few
tell. Graphs and feature cards keep all of the fingerprints below and are compared by the newest that both have.

- `model` and `transcoders`: the first ones. They see norms, biases and thresholds.
- `model/2` and `transcoders/2` see every kind of weight: embeddings, attention, MLPs, norms; encoders, decoders, skip
  connections, biases, thresholds, and the activation function. Like the first ones they are the same whatever dtype
  weights are used in, because they are made of values rounded to bfloat16. A model in float16 has no `model/2`: what it
  was before it was rounded cannot be told.
- `exact` is of the values as they are used, after the dtypes of model and transcoders in words: a graph's edges hold for
  these alone.

Letters: L layers, F features of a layer, D d_model, J layers a feature writes to, R rows, C columns, n values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.float32 import stored_parameters, stored_weight
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.base_model import LoadedModel
from crosstrace.replacement_model.dictionaries.base import SparseDictionary, TranscoderReader
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.model import dictionary_of

# The number of values that the first fingerprints read from each vector.
_VALUES = 4096
# Rows and columns of the grid that is read from a matrix, and rows of a decoder or an embedding. Each value of a grid may
# be a page of a file.
_GRID, _ROWS = 6, 8
_DIGITS = 16


def weight_fingerprints(model: LoadedModel, dictionary: DictionaryInUse | None = None) -> dict[str, str]:
    """Return the fingerprints of a model's and a dictionary's weights; see the module.

    Args:
        model: The replacement model, or a base model.
        dictionary: The dictionary, whose fingerprints are called `transcoders` whatever it is; None for the replacement
            model's transcoders.

    Raises:
        ValueError: The model has no transcoders, and no dictionary is named.

    Example:
        >>> sorted(weight_fingerprints(ReplacementModel.demo()))
        ['exact', 'model', 'model/2', 'transcoders', 'transcoders/2']
    """
    used = dictionary_of(model, dictionary)
    of_model = list(_model_samples(model.sites))
    of_dictionary = list(_dictionary_samples(used.reader))
    prints = {
        "model": model_fingerprint(model.sites),
        "transcoders": transcoders_fingerprint(used.reader),
        "transcoders/2": _digest(_dictionary_words(used.reader), of_dictionary, torch.bfloat16),
        "exact": _exact(model.sites, used, of_model, of_dictionary),
    }
    if model.sites.unembedding.dtype != torch.float16:
        prints["model/2"] = _digest(_model_words(model.sites), of_model, torch.bfloat16)
    return prints


def transcoders_fingerprint(reader: SparseDictionary) -> str:
    """Return the first fingerprint of a dictionary: of sizes, encoder and decoder biases and thresholds."""
    digest = hashlib.sha256(_size_words(reader).encode())
    for layer in reader.layers:
        encoder = reader.encoder(layer)
        for tensor in (encoder.b_enc_f, encoder.threshold_f, reader.bias(layer)):
            digest.update(_bytes(tensor.flatten()[:_VALUES], torch.float32))
    return digest.hexdigest()[:_DIGITS]


def model_fingerprint(sites: ModelSites) -> str:
    """Return the first fingerprint of a model: of all norms' weights, rounded to bfloat16."""
    digest = hashlib.sha256(_model_words(sites).encode())
    norms = [sites.final_norm]
    for layer in sites.layers:
        norms += [layer.input_norm, layer.post_attention_norm, layer.pre_feedforward_norm, layer.post_feedforward_norm]
    for norm in norms:
        digest.update(_bytes(stored_weight(norm).flatten()[:_VALUES], torch.bfloat16))
    return digest.hexdigest()[:_DIGITS]


def _exact(sites: ModelSites, used: DictionaryInUse, of_model: list[Tensor], of_dictionary: list[Tensor]) -> str:
    """Return the dtypes in use, and the fingerprint of the values in use."""
    dtype = used.weights_dtype
    # Vectors are used as they are stored, in float32.
    samples = [sample if sample.ndim == 1 else sample.to(dtype) for sample in of_dictionary]
    words = f"{_model_words(sites)} {_dictionary_words(used.reader)}"
    digits = _digest(words, [*of_model, *samples], torch.float32)
    model_dtype = str(sites.unembedding.dtype).removeprefix("torch.")
    return f"{model_dtype} model, {str(dtype).removeprefix('torch.')} transcoders: {digits}"


def _model_words(sites: ModelSites) -> str:
    return f"{sites.description.n_layers} {sites.description.d_model}"


def _size_words(reader: SparseDictionary) -> str:
    cross_layer = isinstance(reader, TranscoderReader) and reader.cross_layer
    words = f"{reader.n_features} {reader.d_model} {cross_layer} {reader.reads.value}"
    # Words that transcoders do not need are left out: their fingerprints are older than other dictionaries.
    return words if isinstance(reader, TranscoderReader) else f"{words} {reader.writes.value} {list(reader.layers)}"


def _dictionary_words(reader: SparseDictionary) -> str:
    return f"{_size_words(reader)} {reader.activation.kind.name} {reader.activation.k}"


def _model_samples(sites: ModelSites) -> Iterator[Tensor]:
    """Yield samples of embedding, unembedding, final norm, and of every weight of every layer."""
    yield _rows(stored_weight(sites.embedding))
    yield _rows(sites.unembedding)
    yield stored_weight(sites.final_norm).cpu()
    for layer in sites.layers:
        for module in _with_weights(layer.whole):
            for weight in stored_parameters(module):
                rows, columns = (_spread(size, _GRID) for size in (len(weight), weight[0].numel()))
                yield (weight[rows][:, columns] if weight.ndim == 2 else weight.flatten()).cpu()


def _with_weights(module: nn.Module) -> list[nn.Module]:
    """Return the modules with weights of their own, by name: their order says nothing of the model."""
    named = [
        (name, part) for name, part in module.named_modules() if next(part.parameters(recurse=False), None) is not None
    ]
    return [part for _, part in sorted(named, key=lambda pair: pair[0])]


def _dictionary_samples(reader: SparseDictionary) -> Iterator[Tensor]:
    """Yield samples of every layer's tensors, vectors whole, chosen by their indices and not by how they lie in a file."""
    for layer in reader.layers:
        encoder, decoder_fjd = reader.encoder(layer), reader.decoder(layer)
        skip_dd = reader.skip(layer) if isinstance(reader, TranscoderReader) else None
        yield _grid(encoder.w_enc_df)
        n_features, n_written, _ = decoder_fjd.shape
        yield torch.stack(
            [decoder_fjd[feature, number % n_written] for number, feature in enumerate(_spread(n_features, _ROWS))]
        )
        yield from (encoder.b_enc_f, encoder.threshold_f, reader.bias(layer))
        if skip_dd is not None:
            yield _grid(skip_dd)


def _rows(weight_rc: Tensor) -> Tensor:
    return weight_rc[_spread(weight_rc.shape[0], _ROWS)].cpu()


def _grid(weight_rc: Tensor) -> Tensor:
    """Return a grid of values, a row at a time: in a file the rows between them are not read, nor is more of a column."""
    rows, columns = (_spread(size, _GRID) for size in weight_rc.shape)
    return torch.stack([weight_rc[row, columns] for row in rows])


def _spread(size: int, n: int) -> list[int]:
    """Return up to `n` indices below `size`, the first and the last among them."""
    n = min(n, size)
    return [number * (size - 1) // max(1, n - 1) for number in range(n)]


def _digest(words: str, samples: list[Tensor], dtype: torch.dtype) -> str:
    digest = hashlib.sha256(words.encode())
    for sample in samples:
        digest.update(_bytes(sample, dtype))
    return digest.hexdigest()[:_DIGITS]


def _bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    values = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    return values.view(torch.uint8).numpy().tobytes()
