"""What may be a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Prompt = str | Sequence[int] | Tensor
"""A text, or token ids that are taken as they are."""


def check_text(prompt: str) -> None:
    """Refuse text that UTF-8 cannot encode, such as other bytes that a terminal passes on; tokenizers take none of it.

    Raises:
        ValueError: The text is not valid; one line that says where it stops being.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as problem:
        raise ValueError(f"the prompt is not valid text: character {problem.start} is not valid UTF-8") from None
