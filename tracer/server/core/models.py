"""The models that a server was started with: no request can name another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from crosstrace.graphs import FeatureCards
from crosstrace.graphs.viewer_ids import scan_name
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.conversations import Conversation, Message, check_messages, plain_conversation
from crosstrace.replacement_model.fingerprints import weight_fingerprints
from crosstrace.replacement_model.prompts import check_text
from crosstrace.tracer.cards.lookup import Note, find_cards
from crosstrace.tracer.server.core.settings import Limits

_T = TypeVar("_T")


@dataclass(frozen=True)
class Prompt:
    """What a request asks about: a text, or a conversation, each with an answer that is read or without one.

    Attributes:
        text: A text; "" where there are messages.
        messages: A conversation, each message with its `role` and `content`.
        answer: What is said then; "" for nothing.
    """

    text: str = ""
    messages: tuple[Message, ...] = ()
    answer: str = ""


class Served:
    """A model as it is served.

    Attributes:
        name: How requests call it.
        model: The model.
        cards: Its feature cards, if there are any.
        scan: Its name in viewers.
    """

    def __init__(self, name: str, model: ReplacementModel, cards: FeatureCards | None) -> None:
        self.name, self.model, self.cards, self.scan = name, model, cards, scan_name(model.name)
        self._tokenizing = threading.Lock()  # requests are checked side by side, which tokenizers need not allow

    @classmethod
    def of(
        cls, model: ReplacementModel, name: str | None = None, cards: Path | None = None, note: Note | None = None
    ) -> Served:
        """Return a model to be served, with its feature cards.

        Args:
            model: The model.
            name: How requests call it; its own name if None.
            cards: A file of feature cards; None for those beside the transcoders.
            note: Called with one line that says why cards beside the transcoders are not used.

        Raises:
            OSError: The given file cannot be read.
            ValueError: It is not a file of cards, or belongs to other transcoders.
        """
        fingerprints = weight_fingerprints(model)
        found = find_cards(model.name, model.transcoders.name, fingerprints, given=cards, note=note)
        return cls(name or model.name, model, found)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of its weights, as graphs keep them."""
        return dict(weight_fingerprints(self.model))

    @property
    def is_chat(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return bool(getattr(self.model.tokenizer, "chat_template", None))

    def alone(self, read: Callable[[], _T]) -> _T:
        """Call something that uses the tokenizer, while no other request does."""
        with self._tokenizing:
            return read()

    def bos_of(self, ids: Iterable[int]) -> list[int]:
        """Return where `<bos>` stands among token ids."""
        bos = getattr(self.model.tokenizer, "bos_token_id", None)
        return [place for place, token in enumerate(ids) if token == bos]

    def bos_positions(self, text: str) -> list[int]:
        """Return where `<bos>` stands in a text as the model reads it.

        Raises:
            ValueError: The text cannot be used.
        """
        return self.alone(lambda: self.bos_of(self.model.tokenize(text).tolist()))

    def prompt(self, asked: Prompt, limits: Limits) -> str | Conversation:
        """Return a prompt for the model; only the tokenizer is used.

        Raises:
            ValueError: It is empty, cannot be used, or has too many tokens.
        """
        return self.alone(lambda: self._prompt(asked, limits))

    def _prompt(self, asked: Prompt, limits: Limits) -> str | Conversation:
        model, prompt = self.model, asked.text
        answer = asked.answer if asked.answer.strip() else None
        conversation: Conversation | None = None
        if asked.messages:
            if asked.text:
                raise ValueError("give a prompt or messages, not both")
            messages: Sequence[Message] = check_messages(list(asked.messages))
            if answer is not None and messages[-1]["role"] == "assistant":
                raise ValueError("the last message is the assistant's, so it is the answer already; give no other")
            conversation = model.conversation(messages, answer)
        else:
            if not prompt.strip():
                raise ValueError("the prompt is empty")
            check_text(prompt)
            if answer is not None:
                check_text(answer, "answer")
                ids, size = model.tokenize(prompt).tolist(), model.description.max_positions
                conversation = plain_conversation(ids, answer, model.tokenizer, model.name, size)
        n_tokens = len(conversation) if conversation is not None else len(model.tokenize(prompt))
        if n_tokens > limits.prompt_tokens:
            raise ValueError(f"the prompt has {n_tokens:,} tokens; this server takes at most {limits.prompt_tokens:,}")
        return prompt if conversation is None else conversation


class Models:
    """The models of a server, the first of them where a request names none."""

    def __init__(self, served: Iterable[Served]) -> None:
        self.served = list(served)
        self._by_name: dict[str, Served] = {}
        for one in reversed(self.served):
            self._by_name |= {one.model.name: one, one.scan: one, one.name: one}

    def __iter__(self) -> Iterator[Served]:
        return iter(self.served)

    def find(self, name: str | None) -> Served:
        """Return the model of a name: as it was named at start, its own, or the one in viewers.

        Raises:
            ValueError: It is not one of those that the server was started with.
        """
        if not name:
            return self.served[0]
        if name not in self._by_name:
            known = ", ".join(one.name for one in self.served)
            raise ValueError(f"model {name[:80]!r} is not served here; known are {known}")
        return self._by_name[name]
