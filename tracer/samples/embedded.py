"""What the embedded demos are read with where nobody names a corpus: some of their own sentences."""

from __future__ import annotations

import random

from crosstrace.replacement_model import LoadedModel, Texts, demo, demo_chat

_TEXTS = 2500


def embedded_corpus(model: LoadedModel) -> Texts | None:
    """Return texts of the kind that an embedded model was trained on, always the same ones; None for another model.

    Args:
        model: The model, with its tokenizer.
    """
    rng = random.Random(0)
    if model.name == demo.MODEL_NAME:
        from crosstrace.replacement_model.demo.corpus import sentences

        every = [sentence.text for sentence in sentences(demo.load_facts())]
        return Texts(rng.sample(every, min(_TEXTS, len(every))), "the demo's sentences")
    if model.name == demo_chat.MODEL_NAME:
        from crosstrace.replacement_model.conversations import conversation_text
        from crosstrace.replacement_model.demo_chat.conversations import training_conversation

        talks = [training_conversation(rng) for _ in range(_TEXTS)]
        return Texts(
            [
                conversation_text(
                    [*talk.messages, {"role": "assistant", "content": talk.answer}], model.tokenizer, model.name
                )
                for talk in talks
            ],
            "the chat demo's conversations",
        )
    return None
