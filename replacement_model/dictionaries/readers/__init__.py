"""Readers of public transcoder formats; the model never knows which one it was."""

from crosstrace.replacement_model.dictionaries.readers.base import Encoder, TranscoderReader
from crosstrace.replacement_model.dictionaries.readers.opening import download_bytes, open_transcoders

__all__ = ["Encoder", "TranscoderReader", "download_bytes", "open_transcoders"]
