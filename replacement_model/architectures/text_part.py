"""The part of a checkpoint that is traced: of one with a vision tower, the text model alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_NOT_READ = r"rotary_emb\.inv_freq$|^lm_head\.weight$"  # computed anew; tied to the embedding
_VISION = r"^(?:model\.)?(?:vision_tower|multi_modal_projector)\."


@dataclass(frozen=True)
class TextPart:
    """What `transformers` loads for a model.

    Attributes:
        loader: The class of `transformers`.
        config: The config that it gets.
        renamed: Patterns of tensor names in the files, and what replaces them.
        ignores: Tensors of the files that are not read, and need not be.
    """

    loader: Any
    config: Any
    renamed: dict[str, str] = field(default_factory=dict)
    ignores: re.Pattern[str] = re.compile(_NOT_READ)


def text_part(config: Any, architecture: str) -> TextPart:
    """Return what is loaded of a checkpoint, given the config of the whole and its architecture."""
    import transformers

    if architecture != "Gemma3ForConditionalGeneration":
        # The class itself: the automatic one imports a good deal more.
        loader = getattr(transformers, architecture, None) or transformers.AutoModelForCausalLM
        return TextPart(loader, config)
    text = config.text_config
    text.tie_word_embeddings = config.tie_word_embeddings
    # Written by `transformers` since 4.52, and before; the second form is also what `save_pretrained` writes.
    renamed = {
        r"^model\.language_model\.": "model.",
        r"^language_model\.model\.": "model.",
        r"^language_model\.lm_head\.": "lm_head.",
    }
    return TextPart(transformers.Gemma3ForCausalLM, text, renamed, re.compile(f"{_NOT_READ}|{_VISION}"))
