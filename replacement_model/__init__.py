"""Gemma 3 with its MLPs replaced by transcoders: loading, the replacement model, the local replacement model."""

from crosstrace.replacement_model.architectures.gemma3 import Gemma3Description
from crosstrace.replacement_model.architectures.registry import SUPPORTED_ARCHITECTURES
from crosstrace.replacement_model.dictionaries.readers import TranscoderReader, open_transcoders
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.interventions.generation import Generation, generate
from crosstrace.replacement_model.interventions.kinds import (
    Ablate,
    Add,
    AllFeatures,
    ErrorAt,
    FeatureAt,
    Freeze,
    Intervention,
    Scale,
    Set,
    Supernode,
    SwapIn,
    TokenAt,
)
from crosstrace.replacement_model.interventions.running import Outcome, intervene, intervene_batch
from crosstrace.replacement_model.local.adjoint import Rows, Target
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.model import ReplacementModel, ReplacementOutput

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "Ablate",
    "Add",
    "AllFeatures",
    "ErrorAt",
    "FeatureAt",
    "Freeze",
    "Gemma3Description",
    "Generation",
    "Intervention",
    "LocalReplacementModel",
    "Outcome",
    "ReplacementModel",
    "ReplacementOutput",
    "Rows",
    "Scale",
    "Set",
    "Supernode",
    "SwapIn",
    "Target",
    "TokenAt",
    "TranscoderReader",
    "Transcoders",
    "generate",
    "intervene",
    "intervene_batch",
    "open_transcoders",
]
