"""The description of a base model: sizes, conventions, and where its modules are. Everything else asks it.

Letters: L layers, D d_model, H heads, K kv heads, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModulePaths:
    """Where the modules of a model are, as attribute paths.

    Attributes:
        text_model: Below the top module: what runs on embedded tokens and returns the final norm's output.
        unembedding: Below the top module.
        embedding: Below the text model, like the two that follow.
        layers: The list of decoder layers.
        final_norm: The norm before the unembedding.
        attention: Below a decoder layer, like the norms that follow. Its output is the pair of what attention writes
            and the probabilities (B, H, P, P).
        input_norm: The norm before attention.
        post_attention_norm: The norm of what attention writes.
        pre_feedforward_norm: The norm before the MLP.
        post_feedforward_norm: The norm of what the MLP writes.
        value: Below the attention module: the projection (K * head_dim, D).
        output: Below the attention module: the projection (D, H * head_dim).
        query: Below the attention module: the projection (H * head_dim, D). None if it is not known; then attention scores
            are not taken apart, like with the three that follow.
        key: Below the attention module: the projection (K * head_dim, D).
        query_norm: Below the attention module: the norm of each head's query, which is then rotated.
        key_norm: Below the attention module: the norm of each kv head's key, which is then rotated.
        mlp: Below a decoder layer: what lies between the norms before and after the MLP. None if it is not known; then
            training end to end, which replaces MLPs, runs them in vain.
    """

    text_model: str
    unembedding: str
    embedding: str
    layers: str
    final_norm: str
    attention: str
    input_norm: str
    post_attention_norm: str
    pre_feedforward_norm: str
    post_feedforward_norm: str
    value: str
    output: str
    mlp: str | None = None
    query: str | None = None
    key: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None


@dataclass(frozen=True)
class ModelDescription:
    """The sizes and conventions of one base model, and where its modules are.

    Attributes:
        n_layers: L.
        d_model: D.
        n_heads: H.
        n_kv_heads: K.
        head_dim: The width of a head.
        vocab_size: V.
        max_positions: The longest prompt, in tokens.
        rms_norm_eps: What every norm adds to the mean square under its root.
        modules: Where the modules are.
        norm_offset: What is added to a norm's stored weight to give its gain.
        excluded_first: The number of first positions that carry no features and no errors, because what fires there is
            an artefact. Change it with `excluding`.
        chat_header: How the chat template begins every conversation, up to the first message; "" without one.
        chat_header_ids: Its tokens. Where a prompt begins with them, all of them are excluded; see `for_prompt`.
        windows: For each layer the number of last positions that it attends to, None for all of them. Empty if all
            layers attend to all positions.
        score_scale: What the products of queries and keys are multiplied with to give the scores before softmax; None if
            it is not known.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    modules: ModulePaths
    norm_offset: float = 0.0
    excluded_first: int = 1
    chat_header: str = ""
    chat_header_ids: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    score_scale: float | None = None

    def window(self, layer: int) -> int | None:
        """Return how many last positions a layer attends to, itself included; None for all of them."""
        return self.windows[layer] if self.windows else None

    def excluding(self, first: int) -> ModelDescription:
        """Return the description with another number of excluded first positions, the same for every prompt.

        Raises:
            ValueError: The number is negative.
        """
        if first < 0:
            raise ValueError(f"excluded first positions must be 0 or more, not {first}")
        return dataclasses.replace(self, excluded_first=first, chat_header="", chat_header_ids=())

    def excluded_first_of(self, tokens: Sequence[int]) -> int:
        """Return how many first positions of a prompt carry no features: the chat template's header, where it has it.

        Args:
            tokens: The prompt's token ids.
        """
        header = self.chat_header_ids
        if header and tuple(tokens[: len(header)]) == header:
            return max(len(header), self.excluded_first)
        return self.excluded_first

    def for_prompt(self, tokens: Sequence[int]) -> ModelDescription:
        """Return the description with the number of first positions that are excluded in one prompt.

        Args:
            tokens: The prompt's token ids.
        """
        return self.excluding(self.excluded_first_of(tokens)) if self.chat_header_ids else self
