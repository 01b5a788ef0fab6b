"""A base model as it is: what dictionaries are trained on and measured in, before any MLP is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.sites import ModelSites
from crosstrace.replacement_model.conversations import Conversation, Message, conversation_of
from crosstrace.replacement_model.embedded import embedded_model


class LoadedModel(Protocol):
    """What reading, measuring and training need of a model: `BaseModel` and `ReplacementModel` have it."""

    @property
    def sites(self) -> ModelSites:
        """The live modules of the model."""

    @property
    def description(self) -> ModelDescription:
        """The sizes and conventions of the model."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `transformers`, or None."""

    @property
    def name(self) -> str:
        """What the user called the model."""

    @property
    def device(self) -> torch.device:
        """Where dictionaries are used."""

    def conversation(self, messages: Sequence[Message], answer: str | None = None) -> Conversation:
        """Return a conversation as the tokenizer's chat template writes it."""


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A loaded base model. A `crosstrace.replacement_model.ReplacementModel` holds the same and serves in its place.

    Attributes:
        model: The model, as `transformers` loaded it.
        sites: The live modules of the model.
        tokenizer: The tokenizer of `transformers`, or None.
        name: What the user called the model.
        device: Where dictionaries are used, and the model unless a device map spreads it.
    """

    model: nn.Module
    sites: ModelSites
    tokenizer: Any
    name: str
    device: torch.device

    @property
    def description(self) -> ModelDescription:
        """The sizes and conventions of the model."""
        return self.sites.description

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        excluded_first: int | None = None,
        device_map: str | dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> BaseModel:
        """Load a model.

        Args:
            model: A folder, a `.gguf` file of Gemma 3, `org/name` on the hub, or `demo` or `demo-chat`, the embedded ones.
            device: Where to compute; None: a GPU if there is one.
            dtype: The dtype of the weights; None: as stored. Arithmetic is float32 whatever the weights are.
            excluded_first: How many first positions are left out; None: as the architecture says.
            device_map: The devices of the model's layers, as `transformers` and accelerate take them; needs accelerate.
            chat_template: A chat template (Jinja) in place of the tokenizer's own, or where it has none.

        Raises:
            ValueError: The architecture is not supported, files are damaged, or a setting is not valid.
            OSError: Something is missing or cannot be reached.

        Example:
            >>> BaseModel.from_pretrained("demo").description.n_layers
            6
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        embedded = embedded_model(model)
        source, name = (str(embedded.folder), embedded.name) if embedded else (str(model), str(model))
        module, tokenizer, description = load_model(source, dtype, place, device_map, chat_template)
        if excluded_first is not None:
            description = description.excluding(excluded_first)
        return cls(module, ModelSites(module, description), tokenizer, name, place)

    def conversation(self, messages: Sequence[Message], answer: str | None = None) -> Conversation:
        """Return a conversation as the tokenizer's chat template writes it; see `ReplacementModel.conversation`.

        Raises:
            ValueError: There is no chat template, it refuses the messages, or all of it is longer than the context.
        """
        return conversation_of(messages, answer, self.tokenizer, self.name, self.description.max_positions)
