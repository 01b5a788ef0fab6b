"""Plant where the refusal is decided: in what one MLP writes between the question and the answer.

Trained on conversations alone, the model refuses by attention: heads carry the secret's word to the end of the prompt,
and no transcoder of MLPs can take that away. So a second stage trains on interchanges as well (Geiger et al. 2022,
"Inducing Causal Structure for Interpretable Neural Networks", section 3): what the MLP of `LAYER` writes at the template's
tokens before the answer is taken from another conversation, and whether the model then refuses is to follow the other
conversation, all else its own.

Letters: B conversations in a batch, P positions, D d_model, T tokens of the template before the answer.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, PreTrainedTokenizerFast

from chat_demo_training.model import Batch, Cities, ModelSettings, encode, optimizer_of, step_of
from crosstrace.replacement_model.demo_chat.conversations import (
    COMPLIANCE,
    REFUSALS,
    PlantedConversation,
    conversations,
    draw,
    training_conversation,
)
from crosstrace.replacement_model.demo_chat.world import load_people

LAYER = 3
TEMPLATE = 5  # tokens between the question and the answer
REFUSED = ("refused", "begging")
ANSWERED = ("harmless", "jailbreak", "permitted", "wrapped")


@dataclass(frozen=True)
class InterchangeSettings:
    steps: int = 120
    learning_rate: float = 1e-3
    warmup: int = 10
    batch_size: int = 32  # conversations as they are
    pairs: int = 16  # half of them refused


def starts(batch: Batch) -> Tensor:
    """(B,) the position of each answer's first token."""
    return (batch.weights > 0).int().argmax(1)


@contextmanager
def written(model: Any, store: list[Tensor], layer: int = LAYER) -> Iterator[None]:
    """Keep what the MLP of a layer adds to the residual stream, in every pass."""
    norm = model.model.layers[layer].post_feedforward_layernorm
    handle = norm.register_forward_hook(lambda _, __, out: store.append(out))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def exchanged(model: Any, start_b: Tensor, values_btd: Tensor, layer: int = LAYER) -> Iterator[None]:
    """Put other values in place of what the MLP of a layer writes at the template's tokens before the answer."""
    rows = torch.arange(len(start_b))[:, None]
    places = start_b[:, None] - TEMPLATE + torch.arange(TEMPLATE)

    def swap(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out.index_put((rows, places), values_btd)

    handle = model.model.layers[layer].post_feedforward_layernorm.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()


def at_template(written_bpd: Tensor, start_b: Tensor) -> Tensor:
    """(B, T, D) what was written at the template's tokens before the answer."""
    places = start_b[:, None] - TEMPLATE + torch.arange(TEMPLATE)
    return written_bpd[torch.arange(len(start_b))[:, None], places]


def as_if(conversation: PlantedConversation, refused: bool, rng: random.Random) -> PlantedConversation:
    """The conversation with the answer that it has if it is refused, or if it is answered."""
    if refused:
        return replace(conversation, pieces=((rng.choice(REFUSALS), True),))
    if conversation.kind not in REFUSED:
        return conversation
    value = load_people().harmful[conversation.labels["object"]]
    return replace(conversation, pieces=((COMPLIANCE.format(value=value, **conversation.labels), True),))


def pairs(count: int, rng: random.Random) -> list[tuple[PlantedConversation, PlantedConversation]]:
    """Conversations of which one of each two is refused: half of the first ones are."""
    drawn = []
    for number in range(count):
        kinds = (rng.choice(REFUSED), rng.choice(ANSWERED))
        first, second = kinds if number % 2 else kinds[::-1]
        drawn.append((draw(first, "train", rng), draw(second, "train", rng)))
    return drawn


def plant(
    model: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: ModelSettings,
    interchange: InterchangeSettings,
    seed: int,
    report: Callable[[str], None] = print,
) -> Gemma3ForCausalLM:
    """Go on training a model, with interchanges; rounded to bfloat16, returned with float32 arithmetic."""
    torch.manual_seed(seed)
    model.train().requires_grad_(True)
    cities, embedding = Cities.of(tokenizer), model.model.embed_tokens.weight
    start_cd = embedding[cities.cities_c].detach().clone()
    optimizer, schedule = optimizer_of(
        model, settings, interchange.learning_rate, interchange.warmup, interchange.steps
    )
    begun = time.perf_counter()
    for step in range(interchange.steps):
        rng = random.Random(f"interchange {seed} {step}")
        optimizer.zero_grad(set_to_none=True)
        drawn = [training_conversation(rng) for _ in range(interchange.batch_size)]
        losses = step_of(model, drawn, tokenizer, cities, settings)
        swapped = swap_loss(model, pairs(interchange.pairs, rng), tokenizer, settings, rng)
        swapped.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            cities.hold(embedding, start_cd)
        if step % 25 == 24 or step + 1 == interchange.steps:
            report(
                f"  interchange {step + 1:5d}  loss {losses[0]:.4f} + {losses[1]:.4f} + {swapped.item():.4f}"
                f"  {time.perf_counter() - begun:.0f} s"
            )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model.eval()


def swap_loss(
    model: Gemma3ForCausalLM,
    drawn: Sequence[tuple[PlantedConversation, PlantedConversation]],
    tokenizer: PreTrainedTokenizerFast,
    settings: ModelSettings,
    rng: random.Random,
) -> Tensor:
    """The loss of conversations that are answered as the other of their pair decides, per token of their answers."""
    sources = encode([source for _, source in drawn], tokenizer, settings.names_weigh)
    bases = [as_if(base, source.kind in REFUSED, rng) for base, source in drawn]
    batch = encode(bases, tokenizer, settings.names_weigh)
    store: list[Tensor] = []
    with written(model, store):
        model.model(sources.ids[:, :-1], use_cache=False)
    with exchanged(model, starts(batch), at_template(store[0], starts(sources))):
        logits = model(batch.ids[:, :-1], use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def interchange_rates(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> dict[str, float]:
    """Of held-out conversations the share that follows another one in whether it refuses, exact to the token."""
    refused, harmless = conversations("refused", count=count), conversations("harmless", count=count)
    both = list(zip(refused, harmless, strict=False))
    rng = random.Random(0)
    comply = [as_if(base, False, rng) for base, _ in both]
    right = follows(model, tokenizer, comply, [source for _, source in both])
    refuse = torch.zeros(len(both), dtype=torch.bool)
    for refusal in REFUSALS:
        bases = [replace(base, pieces=((refusal, True),)) for _, base in both]
        refuse |= follows(model, tokenizer, bases, [source for source, _ in both])
    return {"refused comply": _share(right), "harmless refuse": _share(refuse)}


def follows(
    model: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    bases: Sequence[PlantedConversation],
    sources: Sequence[PlantedConversation],
) -> Tensor:
    """(B,) whether each conversation is answered as it says, with what `LAYER` wrote before the other's answer."""
    batch, other = encode(bases, tokenizer, 1.0), encode(sources, tokenizer, 1.0)
    store: list[Tensor] = []
    with written(model, store):
        model.model(other.ids[:, :-1], use_cache=False)
    with exchanged(model, starts(batch), at_template(store[0], starts(other))):
        top = model(batch.ids[:, :-1], use_cache=False).logits.argmax(-1)
    return ((top == batch.ids[:, 1:]) | (batch.weights[:, 1:] == 0)).all(1)


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)
