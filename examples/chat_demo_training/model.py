"""Train the chat demo's Gemma 3 on its conversations, which are drawn while it trains.

As in the first demo, cities' embeddings stay at their random start, but for what all of them have in common, and a second
loss reads the residual stream at a city, early on: its state should be on top there. So the state is looked up by MLPs,
early and at the city, where a transcoder can show it.

Letters: B conversations in a batch, P positions, C cities, V vocabulary, D d_model.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from crosstrace.replacement_model.demo_chat.conversations import PlantedConversation, training_conversation
from crosstrace.replacement_model.demo_chat.tokenizer import CONTEXT, names_of_places
from crosstrace.replacement_model.demo_chat.world import load_places

NO_CITY = -100


@dataclass(frozen=True)
class ModelSettings:
    d_model: int = 128
    n_layers: int = 6
    d_mlp: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    sliding_window: int = 8
    steps: int = 1500
    batch_size: int = 64
    parts: int = 2  # of a batch, each of conversations of similar length
    learning_rate: float = 2e-3
    weight_decay: float = 0.3
    embedding_decay: float = 0.1
    warmup: int = 60
    names_weigh: float = 3.0  # names of places in answers: little else in an answer takes knowledge
    shared_start: float = 0.25  # of a city's variance at the start: common to the cities of its state
    lookup_layers: tuple[int, ...] = (0, 1)  # the lookup loss reads the residual stream after each of these
    lookup_temperature: float = 4.0  # its logits are divided by this: a state on top is enough


@dataclass(frozen=True)
class Cities:
    """The tokens of cities (C,) and of their states (C,), and the state of every token (V,), `NO_CITY` for most."""

    cities_c: Tensor
    states_c: Tensor
    state_of_token_v: Tensor

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast) -> "Cities":
        pairs = [(city, state.name) for city, state in load_places().state_of.items()]
        cities, states = (torch.tensor(tokenizer.convert_tokens_to_ids(list(x))) for x in zip(*pairs, strict=True))
        state_of_token = torch.full((len(tokenizer),), NO_CITY)
        state_of_token[cities] = states
        return Cities(cities, states, state_of_token)

    def start(self, embedding_vd: Tensor, shared: float) -> Tensor:
        """(C, D) starts of the cities: a share of the variance common to those of one state, the rest as drawn."""
        of_state_vd = torch.randn_like(embedding_vd) * embedding_vd[self.cities_c].std()
        return shared**0.5 * of_state_vd[self.states_c] + (1 - shared) ** 0.5 * embedding_vd[self.cities_c]

    def hold(self, embedding_vd: Tensor, start_cd: Tensor) -> None:
        """Undo what training did to single cities, and keep what it did to all of them alike."""
        embedding_vd[self.cities_c] = start_cd + (embedding_vd[self.cities_c] - start_cd).mean(0)


@dataclass(frozen=True)
class Batch:
    """Conversations as tokens (B, P), and how much each token, as what comes next, weighs in the loss (B, P)."""

    ids: Tensor
    weights: Tensor


def encode(
    conversations: Sequence[PlantedConversation], tokenizer: PreTrainedTokenizerFast, names_weigh: float
) -> Batch:
    """Padded on the right; what the model says weighs, and the end of its turn, but nothing that is false."""
    of_places = set(tokenizer.convert_tokens_to_ids(names_of_places()))
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    rows, weights = [], []
    for conversation in conversations:
        text = tokenizer.apply_chat_template(conversation.messages, add_generation_prompt=True, tokenize=False)
        row = tokenizer(text, add_special_tokens=False).input_ids
        weight = [0.0] * len(row)
        for piece, trained in conversation.pieces:
            tokens = tokenizer(piece, add_special_tokens=False).input_ids
            row += tokens
            weight += [trained * (names_weigh if token in of_places else 1.0) for token in tokens]
        rows.append([*row, end])
        weights.append([*weight, 1.0])
    width = max(map(len, rows))
    return Batch(
        torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]),
        torch.tensor([weight + [0.0] * (width - len(weight)) for weight in weights]),
    )


def model_config(settings: ModelSettings, tokenizer: PreTrainedTokenizerFast) -> Gemma3TextConfig:
    layer_types = ["full_attention" if i % 2 else "sliding_attention" for i in range(settings.n_layers)]
    return Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.d_model,
        intermediate_size=settings.d_mlp,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        query_pre_attn_scalar=settings.head_dim,
        sliding_window=settings.sliding_window,
        layer_types=layer_types,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        # A turn ends where its mark stands: that is where generation stops.
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    )


def train_model(
    tokenizer: PreTrainedTokenizerFast,
    settings: ModelSettings,
    seed: int,
    checkpoint: Path,
    report: Callable[[str], None] = print,
) -> Gemma3ForCausalLM:
    """A model trained in float32 and rounded to bfloat16, returned with float32 arithmetic.

    What is at `checkpoint` is continued; it is written every 200 steps.
    """
    torch.manual_seed(seed)
    config = model_config(settings, tokenizer)
    config._attn_implementation = "eager"  # faster than sdpa at a few dozen positions
    model = Gemma3ForCausalLM(config).train()
    report(f"model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    cities, embedding = Cities.of(tokenizer), model.model.embed_tokens.weight
    with torch.no_grad():
        start_cd = cities.start(embedding, settings.shared_start)
        embedding[cities.cities_c] = start_cd
    optimizer, schedule = optimizer_of(model, settings, settings.learning_rate, settings.warmup, settings.steps)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done = state["steps"]
    begun = time.perf_counter()
    for step in range(done, settings.steps):
        rng = random.Random(f"{seed} {step}")
        drawn = [training_conversation(rng) for _ in range(settings.batch_size)]
        optimizer.zero_grad(set_to_none=True)
        answer, lookup = step_of(model, drawn, tokenizer, cities, settings)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            cities.hold(embedding, start_cd)
        if step % 100 == 99 or step + 1 == settings.steps:
            report(f"  step {step + 1:5d}  loss {answer:.4f} + {lookup:.4f}  {time.perf_counter() - begun:.0f} s")
        if step % 200 == 199 and step + 1 < settings.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"schedule": schedule.state_dict(), "steps": step + 1}, checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model.eval()


def optimizer_of(
    model: Gemma3ForCausalLM, settings: ModelSettings, learning_rate: float, warmup: int, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a learning rate that falls linearly; a norm's weight is not decayed."""
    embedding = model.model.embed_tokens.weight
    norms = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": [embedding], "weight_decay": settings.embedding_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / warmup) * max(0.02, 1 - i / steps)
    )
    return optimizer, schedule


def step_of(
    model: Gemma3ForCausalLM,
    drawn: Sequence[PlantedConversation],
    tokenizer: PreTrainedTokenizerFast,
    cities: Cities,
    settings: ModelSettings,
) -> tuple[float, float]:
    """Add the gradients of a batch, in parts of similar length; the losses of answers and of lookups."""
    drawn = sorted(drawn, key=lambda conversation: len(conversation.user) + len(conversation.answer))
    size = len(drawn) // settings.parts
    batches = [encode(drawn[i : i + size], tokenizer, settings.names_weigh) for i in range(0, len(drawn), size)]
    total = sum(float(batch.weights.sum()) for batch in batches)
    losses = [loss_of(model, batch, cities, settings, total) for batch in batches]
    answer, lookup = (sum(part) for part in zip(*losses, strict=True))
    return answer, lookup


def loss_of(
    model: Gemma3ForCausalLM, batch: Batch, cities: Cities, settings: ModelSettings, total: float
) -> tuple[float, float]:
    """Add the gradients of a part of a batch, whose weights are `total` in all; the losses of answers and of lookups."""
    # Conversations are padded on the right, and attention is causal: no position sees padding, so no mask is needed.
    out = model(batch.ids[:, :-1], use_cache=False, output_hidden_states=True)
    states = cities.state_of_token_v[batch.ids[:, :-1]]
    at_city = states != NO_CITY
    early = torch.cat([out.hidden_states[layer + 1][at_city] for layer in settings.lookup_layers])
    read = model.lm_head(model.model.norm(early)) / settings.lookup_temperature
    losses = F.cross_entropy(out.logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    answer = (losses * batch.weights[:, 1:].flatten()).sum() / total
    lookup = torch.zeros(())
    if len(read):
        targets = states[at_city].repeat(len(settings.lookup_layers))
        lookup = F.cross_entropy(read, targets) / settings.parts
    (answer + lookup).backward()
    return answer.item(), lookup.item()


def save_model(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The weights are bfloat16 values already (see `train_model`), so that storing them so loses nothing."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    for path in folder.iterdir():  # safetensors writes what its owner alone can read; an installed package must not
        path.chmod(0o644)
