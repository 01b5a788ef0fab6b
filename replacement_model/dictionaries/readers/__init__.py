"""Readers of the public file formats of dictionaries; the model never knows which one it was."""

from crosstrace.replacement_model.dictionaries.base import TranscoderReader
from crosstrace.replacement_model.dictionaries.readers.base import FileFormat
from crosstrace.replacement_model.dictionaries.readers.opening import download_bytes, open_sae, open_transcoders
from crosstrace.replacement_model.dictionaries.readers.registry import known_formats, register_reader

__all__ = [
    "FileFormat",
    "TranscoderReader",
    "download_bytes",
    "known_formats",
    "open_sae",
    "open_transcoders",
    "register_reader",
]
