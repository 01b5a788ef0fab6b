"""Conversations that are put to a model: the greedy answer, what kind of answer it is, and the margin of refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crosstrace.replacement_model import Conversation, LoadedModel
from crosstrace.replacement_model.conversations import Record, ending
from crosstrace.replacement_model.interventions.edits import Edits
from crosstrace.tracer.chat.passes import Run, answer_all
from crosstrace.tracer.chat.prefixes import Kind, Prefixes, PrefixTokens

ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Asked:
    """A conversation and what the model does with it.

    Attributes:
        place: Where it came from, for reports.
        text: The user's last words.
        conversation: Its tokens, up to where the assistant speaks.
        answer: The greedy answer's text.
        answer_ids: Its tokens.
        kind: What the answer is.
        margin: Of refusal, in nats.
        log_probabilities: Of every prefix.
    """

    place: str
    text: str
    conversation: Conversation
    answer: str
    answer_ids: tuple[int, ...]
    kind: Kind
    margin: float
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """One conversation under an intervention."""

    kind: Kind
    margin: float
    answer: str


class Judge:
    """Puts conversations to a model and says what its answers are."""

    def __init__(self, model: LoadedModel, prefixes: Prefixes, tokens: PrefixTokens, answer_tokens: int) -> None:
        """Take what is needed.

        Args:
            model: The model.
            prefixes: How answers of either kind begin.
            tokens: The same as tokens.
            answer_tokens: The most tokens of an answer.
        """
        self.model, self.prefixes, self.tokens, self.answer_tokens = model, prefixes, tokens, answer_tokens
        self.ends = ending(model.tokenizer)

    def ask(self, records: Sequence[Record], done: Callable[[int], None] = lambda n: None) -> list[Asked]:
        """Ask conversations as they are; an answer that a conversation has is left out.

        Raises:
            ValueError: One cannot be written by the chat template; the message names it.
        """
        found = []
        for record in records:
            try:
                found.append(self.model.conversation(record.messages).unanswered())
            except ValueError as problem:
                raise ValueError(f"{record.place}: {problem}") from None
        answers = answer_all(
            self.model, [Run(c.tokens) for c in found], self.answer_tokens, self.ends, self.tokens.all, done
        )
        asked = []
        for record, conversation, answered in zip(records, found, answers, strict=True):
            text = self.model.tokenizer.decode(answered.tokens)
            said = next(m["content"] for m in reversed(record.messages) if m["role"] == "user")
            values = answered.log_probabilities
            kind, margin = self.prefixes.kind_of(text), self.tokens.margin(values)
            asked.append(Asked(record.place, said, conversation, text, tuple(answered.tokens), kind, margin, values))
        return asked

    def under(self, asked: Sequence[Asked], edits: Sequence[Edits]) -> list[Outcome]:
        """Ask again under edits of features at positions of the prompt."""
        runs = [Run(one.conversation.tokens, edit) for one, edit in zip(asked, edits, strict=True)]
        answers = answer_all(self.model, runs, self.answer_tokens, self.ends, self.tokens.all)
        texts = [self.model.tokenizer.decode(answered.tokens) for answered in answers]
        return [
            Outcome(self.prefixes.kind_of(text), self.tokens.margin(answered.log_probabilities), text)
            for text, answered in zip(texts, answers, strict=True)
        ]


def closing(conversation: Conversation) -> int:
    """Return how many of the template's tokens close a conversation, after the last turn: there answers are prepared.

    Raises:
        ValueError: There are none, as after a text that no template wrote.
    """
    n = len(conversation) - max((turn.stop for turn in conversation.turns), default=len(conversation))
    if not n:
        raise ValueError("the conversation has no template tokens after its last turn")
    return n
