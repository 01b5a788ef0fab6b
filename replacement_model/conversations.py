"""Conversations: messages as a chat template writes them, and which tokens are a turn's, the answer's, or the template's.

Letters: P positions.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

ROLES = ("system", "user", "assistant")
"""Who may speak; a template may call the assistant otherwise (Gemma's: model)."""

Message = Mapping[str, str]
"""One message: its `role` and its `content`."""

# Stands for a message's content while a template is rendered: private characters, which no template looks at.
_MARK = "\ue000{}\ue001"


@dataclass(frozen=True)
class Turn:
    """The tokens of one message's content.

    Attributes:
        role: Who speaks: `system`, `user` or `assistant`.
        start: The position of its first token.
        stop: The position after its last token.
    """

    role: str
    start: int
    stop: int


@dataclass(frozen=True)
class Conversation(Sequence[int]):
    """The token ids of a conversation, which is a prompt like any other, with what each token belongs to.

    Attributes:
        tokens: P token ids, `<bos>` included.
        turns: The turns in order, the answer's included.
        answer: First position of the answer and the position after its last; None where nothing is answered yet.
        template: The positions of the tokens that the template adds, ascending.
    """

    tokens: tuple[int, ...]
    turns: tuple[Turn, ...] = ()
    answer: tuple[int, int] | None = None
    template: tuple[int, ...] = ()

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return self.tokens[index]

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[int]:
        return iter(self.tokens)

    @property
    def answer_tokens(self) -> tuple[int, ...]:
        """The token ids of the answer; none where nothing is answered yet."""
        return () if self.answer is None else self.tokens[slice(*self.answer)]

    def unanswered(self) -> Conversation:
        """Return the conversation up to where its answer begins.

        Example:
            >>> model.conversation([{"role": "user", "content": "Hi"}], "Hello").unanswered().answer is None
            True
        """
        if self.answer is None:
            return self
        start = self.answer[0]
        turns = tuple(turn for turn in self.turns if turn.start < start)
        return Conversation(self.tokens[:start], turns, None, tuple(p for p in self.template if p < start))

    def answered(self, tokens: Sequence[int]) -> Conversation:
        """Return the conversation with other token ids as its answer, such as generated ones.

        Args:
            tokens: The answer's token ids.

        Raises:
            ValueError: There are none.

        Example:
            >>> model.conversation([{"role": "user", "content": "Hi"}]).answered([5, 6]).answer_tokens
            (5, 6)
        """
        if not len(tokens):
            raise ValueError("the answer has no tokens")
        before = self.unanswered()
        span = len(before), len(before) + len(tokens)
        return dataclasses.replace(
            before,
            tokens=(*before.tokens, *(int(token) for token in tokens)),
            turns=(*before.turns, Turn("assistant", *span)),
            answer=span,
        )


def plain_conversation(
    tokens: Sequence[int], answer: str | None, tokenizer: Any, model_name: str, max_positions: int
) -> Conversation:
    """Return a prompt that no template made as a conversation without turns, with what is said after it as the answer.

    Args:
        tokens: The prompt's token ids.
        answer: What follows, taken as it is; None for nothing.
        tokenizer: The tokenizer of `transformers`, or None.
        model_name: The model, for messages.
        max_positions: The longest prompt that the model takes.

    Raises:
        ValueError: The answer is empty, there is no tokenizer, or all of it is longer than the context.
    """
    conversation = Conversation(tuple(int(token) for token in tokens))
    if answer is not None:
        conversation = conversation.answered(_answer_ids(answer, tokenizer, model_name))
    return _fitting(conversation, model_name, max_positions)


def check_messages(messages: object) -> list[Message]:
    """Check that something is a conversation: a list of messages, each with a role and a content.

    Raises:
        ValueError: It is not; one line that names the message.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f'expected a list of messages {{"role", "content"}}, not {_kind(messages)}')
    if not messages:
        raise ValueError("the conversation has no messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f'message {number} is {_kind(message)}; expected {{"role", "content"}}')
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = _kind(message[key]) if key in message else "not there"
                raise ValueError(f'message {number}: its "{key}" is {found}; expected text')
        if message["role"] not in ROLES:
            raise ValueError(f"message {number} has the role {message['role']!r}; known are {', '.join(ROLES)}")
        if not message["content"].strip():
            raise ValueError(f"message {number} ({message['role']}) is empty")
    return list(messages)


def conversation_of(
    messages: Sequence[Message], answer: str | None, tokenizer: Any, model_name: str, max_positions: int
) -> Conversation:
    """Return the token ids of a conversation as a chat template writes it, up to where the assistant is to speak.

    The answer's tokens are made of its text alone, so that those before it are the same whatever is answered.

    Args:
        messages: In order; if the last is the assistant's, it is the answer.
        answer: What the assistant says at the end, taken as it is; None for nothing, or for the last message.
        tokenizer: The tokenizer of `transformers`, or None.
        model_name: The model, for messages.
        max_positions: The longest prompt that the model takes.

    Raises:
        ValueError: There is no chat template, it refuses the messages, a message is not one or is empty, the answer is
            empty or given twice, or all of it is longer than the context.
    """
    messages = check_messages(messages)
    _check_template(tokenizer, model_name)
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer of model {model_name} does not say where in the text its tokens are")
    before, last = messages, messages[-1]
    if last["role"] == "assistant":
        if answer is not None:
            raise ValueError("the last message is the assistant's, so it is the answer already; give no other")
        before = messages[:-1]
    pieces, contents = _rendered(tokenizer, [*before, last if before is not messages else _open_turn()])
    if before is not messages:
        answer = contents[-1]
    text, spans = "", []
    for piece, content in zip(pieces, contents[: len(before)], strict=False):
        start = len(text) + len(piece)
        text += piece + content
        spans.append((start, start + len(content)))
    text += pieces[len(before)]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids, offsets = [bos, *ids], [(-1, -1), *offsets]
    turns: list[Turn] = []
    own: set[int] = set()
    for message, span in zip(before, spans, strict=True):
        inside = [i for i, offset in enumerate(offsets) if _overlaps(offset, span)]
        if not inside:
            raise ValueError(f"the tokenizer of model {model_name} makes no token of {message['content']!r}")
        turns.append(Turn(message["role"], inside[0], inside[-1] + 1))
        own.update(range(inside[0], inside[-1] + 1))
    template = tuple(position for position in range(len(ids)) if position not in own)
    conversation = Conversation(tuple(ids), tuple(turns), None, template)
    if answer is not None:
        conversation = conversation.answered(_answer_ids(answer, tokenizer, model_name))
    return _fitting(conversation, model_name, max_positions)


def conversation_text(messages: Sequence[Message], tokenizer: Any, model_name: str) -> str:
    """Return a whole conversation as a chat template writes it, every turn ended: a text of a corpus of conversations.

    Args:
        messages: In order.
        tokenizer: The tokenizer of `transformers`, or None.
        model_name: The model, for messages.

    Raises:
        ValueError: There is no chat template, it refuses the messages, or a message is not one or is empty.
    """
    _check_template(tokenizer, model_name)
    return _render(tokenizer, check_messages(messages))


def _check_template(tokenizer: Any, model_name: str) -> None:
    if tokenizer is None:
        raise ValueError(f"model {model_name} has no tokenizer; give the conversation as token ids")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of model {model_name} has no chat template; give one with --chat-template FILE "
            "(in Python: chat_template=… where the model is loaded)"
        )


def _answer_ids(answer: str, tokenizer: Any, model_name: str) -> list[int]:
    if not answer.strip():
        raise ValueError("the answer is empty")
    if tokenizer is None:
        raise ValueError(f"model {model_name} has no tokenizer; give the answer as token ids")
    return list(tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"])


def _fitting(conversation: Conversation, model_name: str, max_positions: int) -> Conversation:
    if len(conversation) > max_positions:
        n_answer = len(conversation.answer_tokens)
        said = f" and its answer {n_answer:,}" if n_answer else ""
        raise ValueError(
            f"the conversation has {len(conversation) - n_answer:,} tokens{said}; "
            f"model {model_name} takes at most {max_positions:,}"
        )
    return conversation


def ending(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end an assistant's turn: what the chat template writes after it, and `<eos>`.

    Args:
        tokenizer: The tokenizer of `transformers`, or None.
    """
    ends = [getattr(tokenizer, "eos_token_id", None)]
    if getattr(tokenizer, "chat_template", None):
        user = {"role": "user", "content": "?"}
        after = _rendered(tokenizer, [user, {"role": "assistant", "content": "?"}])[0][2]
        ids = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"]
        special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        ends += [token for token in ids[:1] if token in special and token != tokenizer.unk_token_id]
    return list(dict.fromkeys(int(token) for token in ends if token is not None))


def turn_marks(tokenizer: Any) -> dict[str, tuple[str, str]]:
    """Return what a chat template writes before and after a message of each role; roles that it refuses are left out.

    Args:
        tokenizer: The tokenizer of `transformers`, or None.

    Returns:
        (before, after) by role, without `<bos>`; empty without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return {}
    user, assistant = {"role": "user", "content": "?"}, {"role": "assistant", "content": "?"}
    try:
        first, between, after = _rendered(tokenizer, [user, assistant])[0]
        closing = _rendered(tokenizer, [user])[0][1]
    except ValueError:
        return {}
    bos = getattr(tokenizer, "bos_token", None) or ""
    marks = {"user": (first.removeprefix(bos), closing), "assistant": (between.removeprefix(closing), after)}
    try:
        system = _rendered(tokenizer, [{"role": "system", "content": "?"}, user])[0]
    except ValueError:
        return marks
    if system[1] != first and (opening := system[0].removeprefix(bos)) != marks["user"][0]:
        ending_ = system[1].removesuffix(marks["user"][0])
        marks["system"] = (opening, ending_)
    return marks


def _open_turn() -> Message:
    return {"role": "assistant", "content": "…"}


def _overlaps(offset: tuple[int, int], span: tuple[int, int]) -> bool:
    start, stop = offset
    return (start < span[1] and stop > span[0]) or (start == stop and span[0] <= start < span[1])


def _rendered(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """What a template writes around the contents, one piece more than there are messages, and the contents in it."""
    marks = [_MARK.format(i) for i in range(len(messages))]
    marked = _render(tokenizer, [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)])
    pieces, rest = [], marked
    for number, mark in enumerate(marks, 1):
        piece, found, rest = rest.partition(mark)
        if not found:
            raise ValueError(f"the chat template leaves out message {number} ({messages[number - 1]['role']})")
        pieces.append(piece)
    pieces.append(rest)
    given = [message["content"] for message in messages]
    text = _render(tokenizer, messages)
    for contents in (given, [content.strip() for content in given]):
        if _joined(pieces, contents) == text:
            return pieces, contents
    # A template may change a content in other ways: then it is what stands between the pieces.
    match = re.fullmatch("(.+?)".join(map(re.escape, pieces)), text, re.DOTALL)
    if match is None:
        raise ValueError("the chat template writes other text around these messages than around others of their roles")
    return pieces, list(match.groups())


def _joined(pieces: Sequence[str], contents: Sequence[str]) -> str:
    return "".join(piece + content for piece, content in zip(pieces, [*contents, ""], strict=True))


def _render(tokenizer: Any, messages: Sequence[Message]) -> str:
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        return str(tokenizer.apply_chat_template(plain, tokenize=False))
    except TemplateSyntaxError as problem:
        raise ValueError(f"the chat template is not a valid one: line {problem.lineno}: {problem.message}") from None
    except (TemplateError, TypeError, KeyError) as problem:
        raise ValueError(f"the chat template refuses these messages: {' '.join(str(problem).split())}") from None


@dataclass(frozen=True)
class Record:
    """One conversation of a file.

    Attributes:
        place: Where it stands, for messages: the file, and its line or number.
        messages: Its messages.
        fields: What else its object holds, such as labels.
    """

    place: str
    messages: list[Message]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_messages(path: Path) -> list[Message]:
    """Read a file of one conversation.

    Args:
        path: A `.json` file: a list of `{"role", "content"}`, or an object with such a list as its `messages`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not one conversation; one line that names the file and the message.
    """
    records = read_conversations(path)
    if len(records) != 1:
        raise ValueError(f"{path} has {len(records)} conversations; expected one")
    return records[0].messages


def read_conversations(path: Path) -> list[Record]:
    """Read a file of conversations.

    Args:
        path: `.jsonl`, one conversation a line, or `.json`, one conversation or a list of them. A conversation is a list
            of `{"role", "content"}`, or an object with such a list as its `messages`.

    Raises:
        OSError: It cannot be read.
        ValueError: There is none, or one is not a conversation; one line that names the file, the line and the message.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl"):
        raise ValueError(
            f"{path}: conversations are read from .json or .jsonl, not {suffix or 'a file without a suffix'}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not UTF-8 (byte {problem.start + 1})") from None
    if suffix == ".jsonl":
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        given = [(place, _json(line, place)) for place, line in lines]
    else:
        value = _json(text, str(path))
        several = isinstance(value, list) and bool(value) and not _is_message(value[0])
        given = (
            [(f"{path}, conversation {i}", one) for i, one in enumerate(value, 1)] if several else [(str(path), value)]
        )
    if not given:
        raise ValueError(f"{path}: has no conversations")
    return [_record(place, value) for place, value in given]


def _is_message(value: object) -> bool:
    return not isinstance(value, list) and not (isinstance(value, dict) and "messages" in value)


def _record(place: str, value: object) -> Record:
    fields: dict[str, Any] = {}
    if isinstance(value, dict):
        if "messages" not in value:
            raise ValueError(f'{place}: expected a list of messages, or an object with "messages"')
        fields = {key: one for key, one in value.items() if key != "messages"}
        value = value["messages"]
    try:
        return Record(place, check_messages(value), fields)
    except ValueError as problem:
        raise ValueError(f"{place}: {problem}") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{place}: not JSON: nested too deep") from None
    except ValueError as problem:
        raise ValueError(f"{place}: not JSON: {' '.join(str(problem).split())}") from None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
