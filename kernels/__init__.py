"""Sparse operations on the weights of per-layer and cross-layer transcoders. They know only tensors.

Each operation has a module that reads top to bottom: the plain definition (`*_reference`), the public function, the torch
path for the CPU. Its Triton kernels lie beside it.

| module | what is in it |
| --- | --- |
| `activations` | `SparseActivations`, the active features of a prompt |
| `encoding`, `encoding_triton` | `encode`: transcoder inputs to lists of active features |
| `decoding`, `decoding_triton` | `decode`, `decode_layer`: active features to reconstructions |
| `scoring`, `scoring_triton` | `scores`: direct effects of active features on targets |
| `backward` | `decode_backward`, `encode_backward`: gradients for training, and Adam on the rows that were touched |
| `dispatch` | the choice between Triton, torch and the reference |
| `decoder_tiles` | decoder rows on their way into a matrix product on the CPU |
| `compiled` | the CPU's loops over single entries, compiled by numba |
| `triton_parts` | what the Triton kernels share |
| `checks` | the checks of arguments, with their messages |
"""

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.backward.decoder import (
    decode_backward,
    decode_backward_adam,
    decode_backward_reference,
    decode_layer_backward,
)
from crosstrace.kernels.backward.encoder import encode_backward, encode_backward_adam, encode_backward_reference
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments, adam_rows
from crosstrace.kernels.decoding import decode, decode_layer, decode_reference
from crosstrace.kernels.encoding import encode, encode_reference
from crosstrace.kernels.scoring import scores, scores_reference

__all__ = [
    "AdamStep",
    "RowGradients",
    "RowMoments",
    "SparseActivations",
    "adam_rows",
    "decode",
    "decode_backward",
    "decode_backward_adam",
    "decode_backward_reference",
    "decode_layer",
    "decode_layer_backward",
    "decode_reference",
    "encode",
    "encode_backward",
    "encode_backward_adam",
    "encode_backward_reference",
    "encode_reference",
    "scores",
    "scores_reference",
]
