"""The prompt that the options of a verb name: a text, or a conversation with an answer that is read or generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosstrace.tracer.commands.model_choice import note_prompt, note_unknown_words, read_chat_template, read_prompt

if TYPE_CHECKING:
    from crosstrace.replacement_model import Conversation, LoadedModel, Message, ModelDescription

_CONVERSATION = "Conversation"

OptionalPrompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="A text, or - to read it from standard input.")
]
Messages = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        metavar="FILE",
        help='In place of PROMPT: a conversation, a JSON list of {"role", "content"}, as the chat template writes it.',
        rich_help_panel=_CONVERSATION,
    ),
]
Answer = Annotated[
    str | None,
    typer.Option(
        "--answer",
        metavar="TEXT",
        help="An answer at the end that is read, not generated, whether or not the model would give it.",
        rich_help_panel=_CONVERSATION,
    ),
]
Generate = Annotated[
    int,
    typer.Option(
        "--generate",
        min=0,
        metavar="N",
        help="Let the model answer with at most N tokens first, and explain that answer.",
        rich_help_panel=_CONVERSATION,
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        help="The chat template (Jinja), in place of the tokenizer's own or where it has none.",
        rich_help_panel=_CONVERSATION,
    ),
]
HideTemplate = Annotated[
    bool,
    typer.Option(
        "--hide-template",
        help="Leave what stands at the chat template's tokens out of tables and pictures; pages begin without it.",
        rich_help_panel=_CONVERSATION,
    ),
]


@dataclass(frozen=True)
class PromptChoice:
    """A prompt before the model is loaded; files and wrong usage are checked when it is made.

    Attributes:
        prompt: As it was given; None where `messages` is.
        messages: The file of a conversation.
        answer: An answer to read.
        generate: How many tokens of an answer to generate; 0 for none.
    """

    prompt: str | None
    messages: Path | None = None
    answer: str | None = None
    generate: int = 0
    given: str | list[Message] = field(init=False)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise typer.BadParameter("give a PROMPT, or a conversation with --messages FILE")
        if self.answer is not None and self.generate:
            raise typer.BadParameter("--answer is read and --generate writes one: give one of them")

    def read(self) -> PromptChoice:
        """Read the text or the file.

        Raises:
            ValueError: It is empty, or not what it should be.
            OSError: The file cannot be read.
        """
        from crosstrace.replacement_model import read_messages

        given: str | list[Message]
        if self.messages is not None:
            given = read_messages(self.messages)
        else:
            assert self.prompt is not None
            given = read_prompt(self.prompt)
        object.__setattr__(self, "given", given)  # the dataclass is frozen
        return self

    @property
    def text(self) -> str:
        """What people wrote in it."""
        parts = [self.given] if isinstance(self.given, str) else [message["content"] for message in self.given]
        return "\n".join([*parts, *([self.answer] if self.answer else [])])

    def planned(self, model: str | None, chat_template: Path | None) -> str | int:
        """Return the text, or how many tokens it comes to, for a plan that loads no weights.

        Raises:
            ValueError: The conversation cannot be written by a chat template.
            OSError: A file cannot be read.
        """
        if isinstance(self.given, str) and self.answer is None and not self.generate:
            return self.given
        from crosstrace.replacement_model.architectures.loading import load_config, load_tokenizer
        from crosstrace.replacement_model.embedded import embedded_model

        own = embedded_model(model or "demo")
        source = str(own.folder if own else model)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None and (template := read_chat_template(chat_template)) is not None:
            tokenizer.chat_template = template
        return len(self._written(tokenizer, source, load_config(source)[1])) + self.generate

    def of(self, model: LoadedModel) -> str | Conversation:
        """Return the prompt for a model, and say what is probably not meant in it.

        Raises:
            ValueError: The model has no chat template, the answer cannot be used, or it is longer than the context.
        """
        if isinstance(self.given, str) and self.answer is None and not self.generate:
            return self.given
        from crosstrace.tracer.chat.passes import with_generated_answer

        conversation = self._written(model.tokenizer, model.name, model.description)
        return with_generated_answer(model, conversation, self.generate) if self.generate else conversation

    def _written(self, tokenizer: Any, name: str, size: ModelDescription) -> Conversation:
        """The conversation, with the answer that is given."""
        from crosstrace.replacement_model.conversations import conversation_of, plain_conversation
        from crosstrace.replacement_model.prompts import prompt_ids

        if not isinstance(self.given, str):
            return conversation_of(self.given, self.answer, tokenizer, name, size.max_positions)
        ids = prompt_ids(self.given, tokenizer, name, size.vocab_size, size.max_positions)
        return plain_conversation(ids.tolist(), self.answer, tokenizer, name, size.max_positions)

    def note(self, model: LoadedModel) -> None:
        """Say what is probably not meant in it: words that the model has no token for, and more in a text."""
        if isinstance(self.given, str):
            note_prompt(model, self.given)
        else:
            note_unknown_words(model, self.text)
