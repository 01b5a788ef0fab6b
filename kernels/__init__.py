"""Sparse operations on the weights of (cross-layer) transcoders.

Each operation has one file that reads top to bottom: the plain definition (``*_reference``), the public function, the
torch path for the CPU; its Triton kernel lies beside it in ``*_triton.py``. ``dispatch`` chooses between them.
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
