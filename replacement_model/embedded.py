"""The models that come with the package, each with its transcoders, by the names that `--model` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crosstrace.replacement_model import demo, demo_chat


@dataclass(frozen=True)
class EmbeddedModel:
    """A model in the package.

    Attributes:
        option: How it is asked for.
        name: What graphs and cards name as their model, wherever the package is installed.
        folder: Its files.
        transcoders_name: What graphs and cards name as their transcoders.
        transcoders: The transcoders' files.
        cards: The file of the transcoders' feature cards.
    """

    option: str
    name: str
    folder: Path
    transcoders_name: str
    transcoders: Path
    cards: Path


DEMO = EmbeddedModel(
    "demo", demo.MODEL_NAME, demo.MODEL_DIR, demo.TRANSCODERS_NAME, demo.TRANSCODERS_DIR, demo.CARDS_FILE
)
DEMO_CHAT = EmbeddedModel(
    "demo-chat",
    demo_chat.MODEL_NAME,
    demo_chat.MODEL_DIR,
    demo_chat.TRANSCODERS_NAME,
    demo_chat.TRANSCODERS_DIR,
    demo_chat.CARDS_FILE,
)
EMBEDDED_MODELS = (DEMO, DEMO_CHAT)


def embedded_model(model: str | Path | None) -> EmbeddedModel | None:
    """Return the embedded model that is asked for, or that a graph names; None if it is another one.

    Args:
        model: As for `crosstrace.replacement_model.BaseModel.from_pretrained`.

    Example:
        >>> embedded_model("demo-chat").name
        'crosstrace-demo-chat'
    """
    return next((own for own in EMBEDDED_MODELS if str(model) in (own.option, own.name)), None)


def embedded_transcoders(transcoders: str | Path | None) -> EmbeddedModel | None:
    """Return the embedded model whose transcoders are named, as graphs and cards name them; None if they are others.

    Args:
        transcoders: The name.
    """
    return next((own for own in EMBEDDED_MODELS if str(transcoders) == own.transcoders_name), None)
