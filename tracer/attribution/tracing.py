"""Tracing: a prompt in, its attribution graph out.

Ameisen et al. 2025, "Circuit Tracing", section "Constructing an Attribution Graph for a Prompt". Every row comes from
one adjoint pass through the local replacement model, which computes many rows at a time.

Letters: N active features, K selected ones, L layers, P positions, D d_model, k targets, n nodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.graphs import AttributionGraph, NodeLayout
from crosstrace.graphs.conversations.spans import KEY as SPANS
from crosstrace.graphs.conversations.spans import Spans
from crosstrace.replacement_model import LocalReplacementModel, ReplacementModel, SparseDictionary
from crosstrace.replacement_model.conversations import Conversation
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.replacement_model.dictionaries.use import in_use
from crosstrace.replacement_model.fingerprints import weight_fingerprints
from crosstrace.replacement_model.prompts import Prompt
from crosstrace.tracer import defaults
from crosstrace.tracer.attribution.batches import Batcher, automatic_batch_size, position_groups, ranked_counts
from crosstrace.tracer.attribution.checkpoint import Checkpoint, trace_identity
from crosstrace.tracer.attribution.row_store import RowStore, rows_in_memory
from crosstrace.tracer.attribution.targets import (
    Logit,
    ResolvedTarget,
    TargetSpec,
    logits_at,
    resolve_targets,
    target_notes,
)
from crosstrace.tracer.cards.naming import with_guesses
from crosstrace.tracer.progress import row_progress


def trace(
    model: ReplacementModel,
    prompt: Prompt,
    targets: TargetSpec | Sequence[TargetSpec] | None = None,
    max_logits: int = defaults.MAX_LOGITS,
    logit_probability: float = defaults.LOGIT_PROBABILITY,
    max_feature_nodes: int | None = None,
    batch_size: int | None = None,
    position: int = -1,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    keep_checkpoint: bool = False,
    excluded_first: int | None = None,
    note: Callable[[str], None] | None = None,
    saes: Sequence[SparseDictionary | DictionaryInUse] = (),
    guess_names: bool = False,
) -> AttributionGraph:
    """Trace a prompt backwards into its attribution graph.

    Args:
        model: The replacement model.
        prompt: Text, which gets `<bos>` unless it starts with it, token ids taken as they are, or a conversation
            (`model.conversation`), whose turns, answer and template tokens the graph keeps.
        targets: What to explain: token ids, token strings, `'" Austin" - " Dallas"'`, `"L3/417@7"`, or `Logit`,
            `Contrast`, `Combination`, `Feature` and `Direction` objects; one or a list. None: of a conversation with an
            answer every token of it, each at the position before it, all of the same weight; otherwise the fewest most
            probable next tokens that together reach `logit_probability`, at most `max_logits`.
        max_logits: The most tokens to explain when `targets` is None.
        logit_probability: The probability those tokens should reach together, above 0 and at most 1.
        max_feature_nodes: The most features that get a row: those with the most influence on the targets, ranked again
            as rows become known. None: 8192. What is left out is kept as `omitted` and counts as error.
        batch_size: Rows computed at a time; None: what memory allows. It is lowered when memory runs out. Apart from
            rounding, the result does not depend on it.
        position: Where targets without a position of their own are read; default the last token.
        progress: Show a progress bar on standard error; None: if that is a terminal.
        checkpoint: A file that keeps rows as they are computed, so that an interruption costs at most ten seconds of
            work; deleted at the end. Traces shorter than that write nothing.
        resume: Continue from the rows in `checkpoint`, if it exists; the graph is the same to the bit.
        keep_checkpoint: Leave the checkpoint, if there is one, for the caller to delete once the graph is safe.
        excluded_first: How many first positions carry no features and no errors; None: as the model says (`<bos>`, or in a
            prompt that begins as the chat template does, its header).
        note: Called with one line for each thing in prompt and targets that is probably not meant, such as a second
            `<bos>`; None: they are warnings.
        saes: SAEs whose latents are targets, as `open_sae` returns them: `resid_post/12/417@7` explains which circuit wrote
            that latent.
        guess_names: Name the features that pruning with the default thresholds would keep and that have no label after
            what they promote; see `crosstrace.tracer.with_guesses`. That multiplies their decoders with the whole
            unembedding.

    Returns:
        The whole graph, not pruned.

    Raises:
        ValueError: The prompt, a target or a setting cannot be used, or the checkpoint is of another trace.
        MemoryError: Not even one row at a time fits.
        OSError: The checkpoint cannot be written.
        TraceInterrupted: A KeyboardInterrupt whose text says how to continue.

    Example:
        >>> model = ReplacementModel.demo()
        >>> graph = trace(model, "The capital of the state containing Dallas is")
        >>> graph.logit_strings[0]
        'Austin'
    """
    cap = _check_settings(max_logits, logit_probability, max_feature_nodes, batch_size)
    if excluded_first is not None:
        model = model.excluding(excluded_first)
    local = model.local(prompt)
    explained = targets
    if isinstance(prompt, Conversation) and prompt.answer is not None and targets is None:
        explained = [Logit(prompt[place], place - 1) for place in range(*prompt.answer)]
    wanted = resolve_targets(model, local, explained, position, max_logits, logit_probability, saes_in_use(model, saes))
    for line in (*model.prompt_notes(prompt), *target_notes(model, local, targets, position)):
        if note is None:
            warnings.warn(line, stacklevel=2)
        else:
            note(line)
    n_active = len(local.activations)
    full = NodeLayout(n_active, model.description.n_layers, local.n_positions, len(wanted))
    cap = min(cap, n_active)
    # Of what rows depend on, which takes a while to read, nothing is asked where none are kept.
    identity = {} if checkpoint is None else trace_identity(model, local, wanted, cap)
    saved = Checkpoint(None if checkpoint is None else Path(checkpoint), identity, resume)
    batcher = Batcher(local, saved.batch_size or batch_size or automatic_batch_size(local))
    layers = local.activations.layers.cpu().numpy()
    store = RowStore(
        full,
        layers,
        rows_in_memory(model.transcoders.memory_budget, model.device.type),
        saved.open_file(batcher.batch_size),
    )
    run = _Run(store, local, wanted, batcher, saved)
    with row_progress(len(wanted) + cap, progress) as advance, saved.interruptible(store):
        run.add_targets(advance)
        if cap == n_active:
            run.add_features(np.arange(n_active), advance)
        else:
            weights = np.zeros(full.n)
            weights[full.logits] = [target.weight for target in wanted]
            for count in ranked_counts(cap):
                run.add_features(store.most_influential(count, weights), advance)
    settings: dict[str, Any] = {
        "targets": None if targets is None else [target.string for target in wanted],
        "max_logits": max_logits,
        "logit_probability": logit_probability,
        "max_feature_nodes": cap,
        "position": position,
        "excluded_first": local.description.excluded_first,
        "weights_dtype": model.weights_dtype,
        "device": model.device.type,
        "fingerprints": weight_fingerprints(model),
        "versions": _versions(),
    }
    if isinstance(prompt, Conversation):
        settings[SPANS] = _spans(local, prompt).as_settings()
    if contrasts := {str(i): list(target.contrast) for i, target in enumerate(wanted) if target.contrast is not None}:
        settings["contrasts"] = contrasts  # their names may not tell which tokens they are of
    saved.keep(store)
    graph = _assemble(model, local, wanted, store, settings)
    if guess_names:
        graph = with_guesses(graph, model)
    saved.done(delete=not keep_checkpoint)
    return graph


def _spans(local: LocalReplacementModel, conversation: Conversation) -> Spans:
    """What a graph keeps of a conversation."""
    turns = tuple((turn.role, turn.start, turn.stop) for turn in conversation.turns)
    said = () if conversation.answer is None else answer_log_probabilities(local, conversation)
    return Spans(turns, conversation.answer, frozenset(conversation.template), tuple(said))


def answer_log_probabilities(local: LocalReplacementModel, conversation: Conversation) -> list[float]:
    """Return the model's log-probability of each token of a conversation's answer, in nats; none without an answer.

    Args:
        local: The conversation's local replacement model.
        conversation: The conversation.
    """
    if conversation.answer is None:
        return []
    begin, end = conversation.answer
    read = logits_at(local, range(begin - 1, end - 1))
    pairs = zip(conversation.answer_tokens, read, strict=True)
    return [float(logits_v.double().log_softmax(-1)[token]) for token, (_, logits_v) in pairs]


def saes_in_use(model: ReplacementModel, saes: Sequence[SparseDictionary | DictionaryInUse]) -> list[Saes]:
    """Return SAEs in use on a model's device.

    Raises:
        ValueError: One is not an SAE, or does not fit the model.
    """
    used = []
    for given in saes:
        sae = in_use(given, model.device)
        if not isinstance(sae, Saes):
            raise ValueError(f"{sae.name} is not an SAE: its features are written L3/417")
        sae.check_fits(model.description, model.name)
        used.append(sae)
    return used


def _check_settings(
    max_logits: int, logit_probability: float, max_feature_nodes: int | None, batch_size: int | None
) -> int:
    if max_logits < 1:
        raise ValueError(f"max_logits must be 1 or more, not {max_logits}")
    if not 0 < logit_probability <= 1:
        raise ValueError(f"logit_probability must be above 0 and at most 1, not {logit_probability}")
    if max_feature_nodes is not None and max_feature_nodes < 0:
        raise ValueError(f"max_feature_nodes must be 0 or more, not {max_feature_nodes}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    return defaults.MAX_FEATURE_NODES if max_feature_nodes is None else max_feature_nodes


class _Run:
    """Fills the store: first from the checkpoint, then by computing."""

    def __init__(
        self,
        store: RowStore,
        local: LocalReplacementModel,
        wanted: Sequence[ResolvedTarget],
        batcher: Batcher,
        saved: Checkpoint,
    ) -> None:
        self.store, self.local, self.wanted, self.batcher, self.saved = store, local, wanted, batcher, saved
        self.planned_size = batcher.batch_size  # groups must not depend on what memory does later
        self.positions = local.activations.positions.cpu().numpy()

    def add_targets(self, advance: Callable[[int], None]) -> None:
        """Add the rows of the graph's targets."""
        logits = self.store.layout.logits
        self._add(np.arange(logits.start, logits.stop), advance)

    def add_features(self, nodes: NDArray[np.int64], advance: Callable[[int], None]) -> None:
        """Add the rows of features (ascending node numbers, so ascending layers: a batch covers neighbouring layers)."""
        for group in position_groups(nodes, self.positions, self.planned_size):
            self._add(group, advance)

    def _add(self, nodes: NDArray[np.int64], advance: Callable[[int], None]) -> None:
        start = 0
        while start < len(nodes):
            block = self.saved.next_block(nodes[start:])
            if block is not None:
                self.store.add_saved(block)
                self.batcher.batch_size = block.batch_size
                done = len(block.nodes)
            else:
                batch = nodes[start : start + self.batcher.batch_size]
                if batch[0] >= self.store.layout.logits.start:
                    targets = [self.wanted[node - self.store.layout.logits.start].target for node in batch]
                else:
                    targets = self.local.feature_targets(torch.from_numpy(batch))
                limit = self.batcher.batch_size
                rows = self.batcher.rows(targets)
                if rows is None:
                    continue
                self.store.add(batch, rows, np.array([target.value for target in targets], dtype=np.float32), limit)
                done = len(batch)
            start += done
            advance(done)


def _assemble(
    model: ReplacementModel,
    local: LocalReplacementModel,
    wanted: Sequence[ResolvedTarget],
    store: RowStore,
    settings: dict[str, Any],
) -> AttributionGraph:
    """Build the graph of the features that have a row; edges from the others are summed up as omitted."""
    full = store.layout
    has_row = store.known[full.features]
    selected = np.flatnonzero(has_row)
    kept = np.concatenate([selected, np.arange(full.errors.start, full.n)])
    rows = store.assemble(kept)
    indices = local.activations.indices.cpu()
    labels = local.transcoders.labels
    return AttributionGraph(
        active_features=indices,
        activations=local.activations.values.cpu(),
        selected_features=torch.from_numpy(selected),
        tokens=local.tokens_p,
        token_strings=model.token_strings(local.tokens_p),
        logit_tokens=torch.tensor([target.token for target in wanted]),
        logit_strings=[target.string for target in wanted],
        logit_probabilities=torch.tensor([target.weight for target in wanted]),
        logit_positions=torch.tensor([target.target.position for target in wanted]),
        target_probabilities=torch.tensor([target.probability for target in wanted]),
        logit_layers=torch.tensor([target.target.layer for target in wanted]),
        n_layers=full.n_layers,
        edges=rows.edges,
        unattributed=torch.from_numpy(rows.unattributed),
        omitted=torch.from_numpy(rows.omitted),
        omitted_magnitude=torch.from_numpy(rows.omitted_magnitude),
        target_values=torch.from_numpy(rows.values),
        prompt=_prompt_text(model, local),
        model_name=model.name,
        transcoders_name=model.transcoders.name,
        settings=settings,
        feature_labels=[labels.get((layer, feature), "") for layer, _, feature in indices[selected].tolist()],
    )


def _prompt_text(model: ReplacementModel, local: LocalReplacementModel) -> str:
    """Return the prompt as the model read it, `<bos>` included, so that tracing it again gives the same tokens."""
    if model.tokenizer is None:
        return " ".join(model.token_strings(local.tokens_p))
    return model.tokenizer.decode(local.tokens_p.tolist())


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("crosstrace", "torch", "transformers")}
