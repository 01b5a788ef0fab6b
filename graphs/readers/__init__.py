"""Graphs from files of other formats than crosstrace's own `.safetensors`."""
