"""What a pass needs of a replacement model, so that passes do not have to know the replacement model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.local.local_model import LocalReplacementModel
from crosstrace.replacement_model.prompts import Prompt

Localize = Callable[[Prompt | LocalReplacementModel], LocalReplacementModel]
"""Gives a prompt's local replacement model; one that is given stays as it is."""


class RunningModel(Protocol):
    """A replacement model as passes see it; `crosstrace.replacement_model.ReplacementModel` is one."""

    @property
    def name(self) -> str:
        """What the user called the model."""

    @property
    def model(self) -> nn.Module:
        """The base model, as `transformers` loaded it."""

    @property
    def sites(self) -> ModelSites:
        """The live modules of the base model."""

    @property
    def description(self) -> ModelDescription:
        """The sizes and conventions of the base model."""

    @property
    def transcoders(self) -> Transcoders:
        """The transcoders in use."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `transformers`, or None."""

    @property
    def device(self) -> torch.device:
        """Where tracing happens."""

    def excluding(self, first: int) -> RunningModel:
        """Return the same model with another number of excluded first positions.

        Raises:
            ValueError: The number is negative.
        """

    def tokenize(self, prompt: Prompt) -> Tensor:
        """Return the prompt's token ids (P,) int64.

        Raises:
            ValueError: The prompt cannot be used.
        """

    def token_strings(self, tokens_p: Tensor) -> list[str]:
        """Return each token as text."""

    def local(self, prompt: Prompt) -> LocalReplacementModel:
        """Run a prompt once and return its local replacement model.

        Raises:
            ValueError: The prompt cannot be used.
        """

    def localizer(self) -> Localize:
        """Return a function that gives prompts' local replacement models and runs each prompt once."""
