"""Sparse operations on the weights of per-layer and cross-layer transcoders. They know only tensors.

Each operation has a module that reads top to bottom: the plain definition (`*_reference`), the public function, the torch
path for the CPU. Its Triton kernels lie beside it.

| module | what is in it |
| --- | --- |
| `activations` | `SparseActivations`, the active features of a prompt |
| `encoding`, `encoding_triton` | `encode`: transcoder inputs to lists of active features |
| `decoding`, `decoding_triton` | `decode`, `decode_layer`: active features to reconstructions |
| `scoring`, `scoring_triton` | `scores`: direct effects of active features on targets |
| `dispatch` | the choice between Triton, torch and the reference |
| `decoder_tiles` | decoder rows on their way into a matrix product on the CPU |
| `triton_parts` | what the Triton kernels share |
| `checks` | the checks of arguments, with their messages |
"""

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.decoding import decode, decode_layer, decode_reference
from crosstrace.kernels.encoding import encode, encode_reference
from crosstrace.kernels.scoring import scores, scores_reference

__all__ = [
    "SparseActivations",
    "decode",
    "decode_layer",
    "decode_reference",
    "encode",
    "encode_reference",
    "scores",
    "scores_reference",
]
