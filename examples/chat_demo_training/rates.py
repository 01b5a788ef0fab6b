"""How far what was planted holds: exact answers on held-out conversations, of the model and with its MLPs replaced.

Letters: B conversations in a batch, P positions, D d_model, L layers.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from crosstrace.replacement_model.demo_chat.conversations import KINDS, PlantedConversation, conversations

PER_KIND = 200  # conversations of each kind; some have no more that are held out
BATCH = 100


@dataclass(frozen=True)
class Asked:
    """Conversations as tokens: `ids` (B, P), and where each answer that is to be predicted begins and ends, both (B,)."""

    ids: Tensor
    start: Tensor
    end: Tensor


def asked(
    texts: Sequence[tuple[PlantedConversation, str]], tokenizer: PreTrainedTokenizerFast, read: str = ""
) -> Asked:
    """Each conversation with an answer, of which everything up to and including `read` is given, and not predicted."""
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    rows, starts = [], []
    for conversation, answer in texts:
        prompt = tokenizer.apply_chat_template(conversation.messages, add_generation_prompt=True)["input_ids"]
        given = answer[: answer.rindex(read) + len(read)] if read else ""
        known = tokenizer(given, add_special_tokens=False).input_ids
        said = tokenizer(answer, add_special_tokens=False).input_ids
        starts.append(len(prompt) + len(known))
        rows.append([*prompt, *said, end_of_turn])
    ends = torch.tensor(list(map(len, rows)))
    width = int(ends.max())
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    return Asked(ids, torch.tensor(starts), ends)


@torch.no_grad()
def predicted(model: nn.Module, texts: Asked) -> Tensor:
    """(B,) whether the model's top token is the answer's at every position of the answer, end of turn included."""
    right = []
    for ids, start, end in zip(*(x.split(BATCH) for x in (texts.ids, texts.start, texts.end)), strict=True):
        top = model(ids[:, :-1], use_cache=False).logits.argmax(-1)
        place = torch.arange(1, ids.shape[1])
        counts = (place >= start[:, None]) & (place < end[:, None])
        right.append(((top == ids[:, 1:]) | ~counts).all(1))
    return torch.cat(right)


def answered(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, found: Sequence[PlantedConversation], read: str = ""
) -> Tensor:
    """(B,) whether the model, left to itself after `read`, gives one of the accepted answers."""
    right = torch.zeros(len(found), dtype=torch.bool)
    for number in range(max(len(conversation.accepted) for conversation in found)):
        texts = [(c, c.accepted[min(number, len(c.accepted) - 1)]) for c in found]
        right |= predicted(model, asked(texts, tokenizer, read))
    return right


def rates(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    part: str = "held-out",
    count: int = PER_KIND,
    replaced: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, dict[str, float]]:
    """For every kind the number of conversations and the share with an accepted answer, exact to the token."""
    table: dict[str, dict[str, float]] = {}
    with replaced():
        for kind in KINDS:
            found = conversations(kind, part, count)  # type: ignore[arg-type]
            table[kind] = _row(answered(model, tokenizer, found))
        for kind in ("think", "explain", "hint"):
            found = conversations(kind, part, count, false_steps=True)  # type: ignore[arg-type]
            table[f"{kind}, false steps"] = _row(answered(model, tokenizer, found, "Answer :"))
    return table


def _row(right: Tensor) -> dict[str, float]:
    return {"conversations": len(right), "rate": round(right.float().mean().item(), 4)}
