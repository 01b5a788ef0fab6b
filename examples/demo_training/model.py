"""Train the demo's Gemma 3 on its sentences.

A model this small would learn by heart, in its embedding, in which state a city lies, and nothing would be left for the
MLPs to look up. Two things keep that from happening. Cities' embeddings stay at their random start, but for what all
cities of states, or of countries, have in common. And a second loss reads the residual stream at a city, early on,
through the final norm and the unembedding: the city's state or country should be on top there.

Letters: B sentences in a batch, P positions, C cities, V vocabulary, D d_model.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from crosstrace.replacement_model.demo import Facts
from crosstrace.replacement_model.demo.corpus import CONTEXT, Sentence

IGNORE = -100


@dataclass(frozen=True)
class ModelSettings:
    d_model: int = 128
    n_layers: int = 6
    d_mlp: int = 448
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    sliding_window: int = 4
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1.0
    embedding_decay: float = 0.3
    warmup: int = 50
    shared_start: float = 0.5  # of a city's variance at the start: common to the cities of its state or country
    lookup_layers: tuple[int, ...] = (0, 1)  # the lookup loss reads the residual stream after each of these
    # Logits are divided by this in the lookup loss: a state on top is enough, and certainty takes room from all the rest.
    lookup_temperature: float = 4.0


@dataclass(frozen=True)
class Geography:
    """Which tokens are cities (C,), in which place (C,) each lies, and which of those are states; `place_of_token` (V,)."""

    cities_c: Tensor
    places_c: Tensor
    in_state_c: Tensor
    place_of_token_v: Tensor  # IGNORE where the token is no city

    @staticmethod
    def of(facts: Facts, tokenizer: PreTrainedTokenizerFast) -> "Geography":
        pairs = [(city, place.name) for place in facts.places for city in place.cities]
        cities, places = (
            torch.tensor(tokenizer.convert_tokens_to_ids(list(names))) for names in zip(*pairs, strict=True)
        )
        states = {state.name for state in facts.states}
        place_of_token = torch.full((len(tokenizer),), IGNORE)
        place_of_token[cities] = places
        return Geography(cities, places, torch.tensor([place in states for _, place in pairs]), place_of_token)

    def start(self, embedding_vd: Tensor, shared: float) -> Tensor:
        """(C, D) starts of the cities: a share of the variance common to those of one place, the rest as drawn."""
        of_place_vd = torch.randn_like(embedding_vd) * embedding_vd[self.cities_c].std()
        return shared**0.5 * of_place_vd[self.places_c] + (1 - shared) ** 0.5 * embedding_vd[self.cities_c]

    def hold(self, embedding_vd: Tensor, start_cd: Tensor) -> None:
        """Undo what training did to single cities, and keep what it did to all cities of states, or of countries, alike."""
        moved_cd = embedding_vd[self.cities_c] - start_cd
        for group in (self.in_state_c, ~self.in_state_c):
            embedding_vd[self.cities_c[group]] = start_cd[group] + moved_cd[group].mean(0)


def model_config(settings: ModelSettings, vocabulary: int) -> Gemma3TextConfig:
    layer_types = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(settings.n_layers)]
    return Gemma3TextConfig(
        vocab_size=vocabulary,
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
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def encode(texts: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(sentences, P) token ids, `<bos>` first, `<eos>` after the answer, padded on the right."""
    rows = [[*tokenizer(sentence.text).input_ids, tokenizer.eos_token_id] for sentence in texts]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def train_model(
    texts: Sequence[Sentence],
    tokenizer: PreTrainedTokenizerFast,
    facts: Facts,
    settings: ModelSettings,
    seed: int,
    report: Callable[[str], None] = print,
) -> Gemma3ForCausalLM:
    """A model trained in float32 and rounded to bfloat16, returned with float32 arithmetic."""
    torch.manual_seed(seed)
    config = model_config(settings, len(tokenizer))
    config._attn_implementation = "eager"  # faster than sdpa at a dozen positions
    model = Gemma3ForCausalLM(config).train()
    report(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")
    ids, geography = encode(texts, tokenizer), Geography.of(facts, tokenizer)
    embedding = model.model.embed_tokens.weight
    with torch.no_grad():
        start_cd = geography.start(embedding, settings.shared_start)
        embedding[geography.cities_c] = start_cd

    # Strong decay is what makes the model combine facts rather than learn them city by city. A norm's weight is not decayed.
    norms = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": [embedding], "weight_decay": settings.embedding_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / settings.warmup) * max(0.02, 1 - i / settings.steps)
    )
    start, order = time.perf_counter(), torch.empty(0, dtype=torch.long)
    for step in range(settings.steps):
        if len(order) < settings.batch_size:
            order = torch.randperm(len(ids))
        batch, order = ids[order[: settings.batch_size]], order[settings.batch_size :]
        # Sentences are padded on the right, and attention is causal: no position sees padding, so no mask is needed.
        # Forward and backward matrix products in bfloat16: what is stored is rounded to it anyway.
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch[:, :-1], use_cache=False, output_hidden_states=True)
            places = geography.place_of_token_v[batch[:, :-1]]
            at_city = places != IGNORE
            early = torch.cat([out.hidden_states[layer + 1][at_city] for layer in settings.lookup_layers])
            read = model.lm_head(model.model.norm(early)).float() / settings.lookup_temperature
        targets = batch[:, 1:].masked_fill(batch[:, 1:] == tokenizer.pad_token_id, IGNORE)
        loss = F.cross_entropy(out.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss = loss + F.cross_entropy(read, places[at_city].repeat(len(settings.lookup_layers)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            geography.hold(embedding, start_cd)
        if step % 100 == 99 or step + 1 == settings.steps:
            report(f"  step {step + 1:5d}  loss {loss.item():.4f}  {time.perf_counter() - start:.0f} s")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model.eval()


def save_model(model: Gemma3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The weights are bfloat16 values already (see `train_model`), so that storing them so loses nothing."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # safetensors writes what its owner alone can read; an installed package must not
        path.chmod(0o644)


@torch.no_grad()
def answers_right(model: nn.Module, texts: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast) -> list[bool]:
    """For each sentence whether the model's top token after its prompt is the answer."""
    ids = encode(texts, tokenizer)
    right = []
    for rows in ids.split(512):
        length = (rows != tokenizer.pad_token_id).sum(-1)  # with <bos> and <eos>
        answer = length - 2
        logits = model(rows, use_cache=False).logits
        index = torch.arange(len(rows))
        right += (logits[index, answer - 1].argmax(-1) == rows[index, answer]).tolist()
    return right
