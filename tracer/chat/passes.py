"""Many prompts read at once, under edits of their features, and then continued: greedily, or by given tokens.

The model itself runs, its own MLPs included; an edit adds what it changes in a feature's activation to what the MLPs write
(the paper's perturbation experiments: Ameisen et al. 2025, "Circuit Tracing", section "Validating Attribution Graph
Hypotheses with Interventions"). Only positions of the prompt are edited. What follows reads the prompt through the cache of
keys and values, so a prompt is read once however it is continued.

Letters: B rows of a batch, W positions of the longest prompt, T tokens of a continuation, X all of them, D d_model,
V vocabulary, C continuations of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.kernels import SparseActivations
from crosstrace.replacement_model import Freeze, LoadedModel, ReplacementModel
from crosstrace.replacement_model.architectures.float32 import float32_arithmetic
from crosstrace.replacement_model.architectures.hooks import hooked
from crosstrace.replacement_model.conversations import Conversation, ending
from crosstrace.replacement_model.interventions.edited_features import EditTable, PassWindow, row_activations
from crosstrace.replacement_model.interventions.edits import Edits
from crosstrace.replacement_model.interventions.held_errors import HeldErrors
from crosstrace.replacement_model.interventions.hooked_pass import HookedPass

# A batch holds as many rows as keep its largest tensors within this.
_BATCH_BYTES = 512 * 2**20
# Logits held at a time: 64 MB of float32.
_LOGITS_AT_A_TIME = 1 << 24


@dataclass(frozen=True)
class Run:
    """A prompt to read.

    Attributes:
        tokens: Its token ids.
        edits: What to change in its features.
        cut: (start, stop) of the positions that later ones may not attend to; None for none.
    """

    tokens: Sequence[int]
    edits: Edits = field(default_factory=Edits)
    cut: tuple[int, int] | None = None


class Reading:
    """B prompts that have been read, ready to be continued.

    Attributes:
        model: The model.
        runs: The B prompts.
        last_bd: (B, D) float32 the final norm's output at each prompt's last position.
        activations: The active features of each prompt, edited ones at their new values; empty unless they were wanted.
    """

    def __init__(self, model: LoadedModel, runs: Sequence[Run], want_activations: bool = False) -> None:
        """Read prompts, padded on the left.

        Args:
            model: The model; with transcoders (`ReplacementModel`) if there are edits, or activations are wanted.
            runs: The prompts.
            want_activations: Whether to keep the active features.
        """
        from transformers import DynamicCache

        self.model, self.runs = model, list(runs)
        device = model.sites.unembedding.device
        lengths = [len(run.tokens) for run in runs]
        width = max(lengths)
        tokens_bw = torch.zeros(len(runs), width, dtype=torch.int64)
        for row, run in enumerate(runs):
            tokens_bw[row, width - len(run.tokens) :] = torch.tensor(list(run.tokens))
        self.lengths_b = torch.tensor(lengths, device=device)
        self.position_bw = torch.arange(width, device=device) - (width - self.lengths_b)[:, None]
        self.cache: Any = DynamicCache()
        self.activations: list[SparseActivations] = []
        with ExitStack() as stack:
            passing = None
            if want_activations or any(len(run.edits) for run in runs):
                passing = self._editing()
                stack.enter_context(hooked(passing.hooks()))
            normed_bwd = self._forward(tokens_bw.to(device), self.position_bw, self.position_bw, self.cache)
        self.last_bd = normed_bwd[:, -1].float()
        if want_activations and passing is not None:
            for row, length in enumerate(lengths):
                start = row * width + width - length
                self.activations.append(row_activations(passing.result.features, start, length))

    def _editing(self) -> HookedPass:
        model = self.model
        if not isinstance(model, ReplacementModel):
            raise ValueError(f"{model.name} has no transcoders whose features could be edited")
        passing = HookedPass(
            model.sites, model.transcoders, Freeze.iterative(attention="free"), HeldErrors.parse("recomputed")
        )
        first_b = [model.description.excluded_first_of(list(run.tokens)) for run in self.runs]
        live_bw = self.position_bw >= torch.tensor(first_b, device=self.position_bw.device)[:, None]
        table = EditTable([run.edits for run in self.runs], model.transcoders.reader.n_features, model.device)
        passing.begin(table, PassWindow(self.position_bw.shape[1] - self.lengths_b, live_bw), None)
        return passing

    def _forward(self, tokens_bt: Tensor, position_bt: Tensor, key_bk: Tensor, cache: Any, times: int = 1) -> Tensor:
        """The final norm's output (B, T, D) for more tokens; each prompt is there `times` times.

        Args:
            tokens_bt: The tokens.
            position_bt: Where in its text each is; below 0 for padding.
            key_bk: The same of all that is read so far, these tokens included.
            cache: What was read before them.
            times: How many rows a prompt has.
        """
        cuts = [run.cut for run in self.runs for _ in range(times)]
        # Padding stands before position 0; nothing attends to it.
        mask: Any = (key_bk >= 0).long() if not any(cuts) else self._masks(position_bt, key_bk, cuts)
        with float32_arithmetic():
            return self.model.sites.text_model(
                inputs_embeds=self.model.sites.embed(tokens_bt),
                attention_mask=mask,
                position_ids=position_bt.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state

    def _masks(self, query_bq: Tensor, key_bk: Tensor, cuts: Sequence[tuple[int, int] | None]) -> dict[str, Tensor]:
        """Masks (B, 1, Q, K) to add to attention scores, of both kinds of layers, in which spans are cut off."""
        query_bq1, key_b1k = query_bq[:, :, None], key_bk[:, None]
        sees = (key_b1k >= 0) & (key_b1k <= query_bq1)
        for row, cut in enumerate(cuts):
            if cut is not None:
                start, stop = cut
                sees[row] &= ~((key_b1k[row] >= start) & (key_b1k[row] < stop) & (query_bq1[row] >= stop))
        windows = [window for window in self.model.description.windows if window is not None]
        near = sees & (query_bq1 - key_b1k < windows[0]) if windows else sees
        lowest = torch.finfo(torch.float32).min
        return {
            kind: torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, lowest)[:, None]
            for kind, seen in (("full_attention", sees), ("sliding_attention", near))
        }

    def _copied(self, times: int) -> Any:
        from transformers import DynamicCache

        copied = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            copied.update(layer.keys.repeat_interleave(times, 0), layer.values.repeat_interleave(times, 0), number)
        return copied

    def forced(self, continuations_b: Sequence[Sequence[Sequence[int]]]) -> list[list[Tensor]]:
        """Return what predicts each token of given continuations.

        Args:
            continuations_b: For each row C continuations, as many for every row, each of one token or more.

        Returns:
            For each row and continuation (T, D) float32 outputs of the final norm: the t-th predicts the t-th token.
        """
        times = len(continuations_b[0])
        longest = max(len(one) - 1 for row in continuations_b for one in row)
        flat = [one for row in continuations_b for one in row]
        last_cd = self.last_bd.repeat_interleave(times, 0)
        if longest:
            tokens_ct = torch.zeros(len(flat), longest, dtype=torch.int64)
            for row, one in enumerate(flat):
                tokens_ct[row, : len(one) - 1] = torch.tensor(list(one[:-1]))
            lengths_c = self.lengths_b.repeat_interleave(times)
            position_ct = lengths_c[:, None] + torch.arange(longest, device=lengths_c.device)
            key_ck = torch.cat([self.position_bw.repeat_interleave(times, 0), position_ct], 1)
            tokens_ct = tokens_ct.to(lengths_c.device)
            normed_ctd = self._forward(tokens_ct, position_ct, key_ck, self._copied(times), times)
            predicting = [
                torch.cat([last_cd[i, None], normed_ctd[i, : len(one) - 1].float()]) for i, one in enumerate(flat)
            ]
        else:
            predicting = [last_cd[i, None] for i in range(len(flat))]
        return [predicting[i : i + times] for i in range(0, len(flat), times)]

    def log_probabilities(self, continuations: Sequence[Sequence[int]]) -> Tensor:
        """Return the log-probability (B, C) float64, in nats, of continuations that are the same for every row."""
        predicting_bc = self.forced([continuations] * len(self.runs))
        flat = torch.cat([one for row in predicting_bc for one in row])
        targets = [token for _ in self.runs for one in continuations for token in one]
        each_x = token_log_probabilities(self.model, flat, torch.tensor(targets))
        lengths = [len(one) for _ in self.runs for one in continuations]
        sums = torch.stack([part.sum() for part in each_x.split(lengths)])
        return sums.view(len(self.runs), len(continuations))

    def greedy(self, max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
        """Continue every row with its most probable tokens, up to one that ends it, which is left out.

        Args:
            max_new_tokens: The most tokens.
            ends: Tokens that end a continuation.
        """
        answers: list[list[int]] = [[] for _ in self.runs]
        open_b = [True] * len(self.runs)
        normed_bd, cache, key_bk = self.last_bd, self._copied(1), self.position_bw
        for step in range(max_new_tokens):
            next_b = torch.cat([self.model.sites.unembed(part).argmax(-1) for part in _pieces(self.model, normed_bd)])
            for row, token in enumerate(next_b.tolist()):
                open_b[row] &= token not in ends
                if open_b[row]:
                    answers[row].append(token)
            if not any(open_b) or step == max_new_tokens - 1:
                break
            here_b1 = (self.lengths_b + step)[:, None]
            key_bk = torch.cat([key_bk, here_b1], 1)
            normed_bd = self._forward(next_b[:, None].to(here_b1.device), here_b1, key_bk, cache)[:, -1].float()
        return answers


def token_log_probabilities(model: LoadedModel, normed_xd: Tensor, targets_x: Tensor) -> Tensor:
    """Return the log-probability (X,) float64, in nats, of the token that each output of the final norm predicts.

    Args:
        model: The model.
        normed_xd: (X, D) outputs of the final norm.
        targets_x: (X,) int64 the tokens.
    """
    found = []
    start = 0
    for part_xd in _pieces(model, normed_xd):
        logits_xv = model.sites.unembed(part_xd)
        wanted_x = targets_x[start : start + len(part_xd)].to(logits_xv.device)
        found.append(-F.cross_entropy(logits_xv, wanted_x, reduction="none").double().cpu())
        start += len(part_xd)
    return torch.cat(found)


def _pieces(model: LoadedModel, normed_xd: Tensor) -> tuple[Tensor, ...]:
    return normed_xd.split(max(1, _LOGITS_AT_A_TIME // model.description.vocab_size))


def in_batches(
    model: LoadedModel, runs: Sequence[Run], extra: int = 32, want_activations: bool = False, copies: int = 1
) -> Iterator[tuple[list[int], Reading]]:
    """Read prompts in batches that fit memory, those of like length together; yield which runs each holds.

    Args:
        model: The model.
        runs: The prompts.
        extra: How many tokens may follow a prompt.
        want_activations: Whether to keep the active features.
        copies: How many continuations of each run are read at a time.
    """
    size = model.description
    order = sorted(range(len(runs)), key=lambda i: len(runs[i].tokens))
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order):
            width = len(runs[order[stop]].tokens) + extra
            keys = 2 * size.n_layers * size.n_kv_heads * size.head_dim * copies
            row = 4 * width * (size.d_model * (2 * size.n_layers + 12) + keys + width * size.n_heads)
            if stop > start and (stop + 1 - start) * row > _BATCH_BYTES:
                break
            stop += 1
        which = order[start:stop]
        yield which, Reading(model, [runs[i] for i in which], want_activations)
        start = stop


@dataclass(frozen=True)
class Answered:
    """What a prompt is answered with.

    Attributes:
        tokens: The greedy answer.
        log_probabilities: Of the given continuations, in nats.
    """

    tokens: list[int]
    log_probabilities: tuple[float, ...]


def answer_all(
    model: LoadedModel,
    runs: Sequence[Run],
    max_new_tokens: int,
    ends: Sequence[int],
    continuations: Sequence[Sequence[int]] = (),
    done: Callable[[int], None] = lambda n: None,
) -> list[Answered]:
    """Answer prompts greedily, and say how probable given continuations are.

    Args:
        model: The model; with transcoders if there are edits.
        runs: The prompts.
        max_new_tokens: The most tokens of an answer; 0 for none.
        ends: Tokens that end an answer.
        continuations: What is scored for every prompt.
        done: Called with how many more runs are answered.
    """
    found: list[Answered | None] = [None] * len(runs)
    for which, reading in in_batches(model, runs, max_new_tokens, copies=max(1, len(continuations))):
        said = reading.log_probabilities(continuations).tolist() if continuations else [[]] * len(which)
        answers = reading.greedy(max_new_tokens, ends) if max_new_tokens else [[] for _ in which]
        for i, tokens, values in zip(which, answers, said, strict=True):
            found[i] = Answered(tokens, tuple(values))
        done(len(which))
    return [one for one in found if one is not None]


def with_generated_answer(model: LoadedModel, conversation: Conversation, max_new_tokens: int) -> Conversation:
    """Return a conversation with the answer that the model gives.

    Args:
        model: The model.
        conversation: The conversation, up to where the assistant is to speak.
        max_new_tokens: The most tokens of the answer.

    Raises:
        ValueError: It has an answer already, there is no room for one, or the model's first token ends the turn.
    """
    if conversation.answer is not None:
        raise ValueError("the conversation ends with the assistant's answer; leave out --generate")
    room = model.description.max_positions - len(conversation)
    if max_new_tokens > room:
        raise ValueError(
            f"--generate {max_new_tokens}: the prompt has {len(conversation):,} tokens, which leaves room for {room:,}"
        )
    (answered,) = answer_all(model, [Run(conversation.tokens)], max_new_tokens, ending(model.tokenizer))
    if not answered.tokens:
        raise ValueError("the model answers nothing: its first token ends the turn")
    return conversation.answered(answered.tokens)


def force_all(model: LoadedModel, runs: Sequence[Run], answers: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return what predicts each token of a given answer to each prompt: (T, D) float32 outputs of the final norm.

    Args:
        model: The model; with transcoders if there are edits.
        runs: The prompts.
        answers: An answer for each, of one token or more.
    """
    found: list[Tensor | None] = [None] * len(runs)
    for which, reading in in_batches(model, runs, max(map(len, answers), default=0)):
        for i, (predicting,) in zip(which, reading.forced([[answers[i]] for i in which]), strict=True):
            found[i] = predicting
    return [one for one in found if one is not None]
