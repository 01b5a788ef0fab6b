"""How good a dictionary is, on a corpus: what it misses, how sparse it is, and what it costs the model's predictions.

The figures are those that dictionaries are usually compared by: the fraction of variance unexplained and the loss with
reconstructions spliced in (Bricken et al. 2023, "Towards Monosemanticity"; Rajamanoharan et al. 2024, "Jumping Ahead",
section 4), L0, and the shares of dead and frequent features.

Letters: B contexts of a batch, W positions of the longest, X counted positions, Y those whose next token is known, R runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosstrace.replacement_model import LoadedModel, ModelDescription, SparseDictionary
from crosstrace.replacement_model.architectures.hooks import without_probabilities
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features
from crosstrace.replacement_model.dictionaries.use import in_use as put_to_use
from crosstrace.replacement_model.memory import is_out_of_memory, usable_bytes
from crosstrace.replacement_model.padding import pad, without_first
from crosstrace.replacement_model.texts import Corpus, Cursor, Texts, as_texts, contexts
from crosstrace.tracer.defaults import CONTEXT_LENGTH, EVALUATION_LAYER_TOKENS, EVALUATION_TOKENS
from crosstrace.tracer.evaluation.losses import next_token_losses
from crosstrace.tracer.evaluation.passes import Batch
from crosstrace.tracer.evaluation.report import AllQuality, EvaluationReport, LayerQuality
from crosstrace.tracer.evaluation.statistics import LayerStatistics
from crosstrace.tracer.progress import token_progress

# Tokens run at a time, padding included, where memory allows.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# What progress counts for a token: a run of the model with its losses is 1, half of it the losses.
_RUNS, _ALONE = 3.0, 0.75
# The share of the memory that a batch may take.
_BATCH_SHARE = 0.125


def evaluate(
    model: LoadedModel,
    dictionary: SparseDictionary | DictionaryInUse,
    texts: Corpus | Texts | str | os.PathLike[str] | Sequence[str],
    tokens: int = EVALUATION_TOKENS,
    *,
    layer_tokens: int = EVALUATION_LAYER_TOKENS,
    context_length: int | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
) -> EvaluationReport:
    """Measure a dictionary on texts.

    Three runs of the model on the same contexts are compared: as it is, with the dictionary's reconstruction in place of
    the site that it writes, and with that site zeroed; no errors are added back. The first gives L0, FVU and how often
    features fire. A fourth kind of run, one for each layer, replaces that layer's site alone; it starts from the
    residual stream below the layer. Excluded first positions keep what the model has and are not counted.

    Args:
        model: The base model, or a replacement model, whose transcoders are not used unless they are the dictionary.
        dictionary: Transcoders or SAEs, as `open_transcoders` and `open_sae` return them, or in use already.
        texts: A `Corpus`, the path of one file, or texts, none of which the dictionary was trained on.
        tokens: Stop after this many tokens are counted; fewer if the texts have no more.
        layer_tokens: Measure the loss with one layer replaced on this many of them, the first; 0 leaves it out.
        context_length: The most tokens of a context, `<bos>` included; None: 256, or what the model takes if that is less.
        batch_tokens: The number of tokens run at a time, padding included; None: 2,048 on a CPU, 16,384 on a GPU, fewer
            where memory is short. Figures depend on it only through rounding.
        progress: Show progress on standard error; None: a bar on a terminal, else a line every few seconds.

    Returns:
        The report.

    Raises:
        ValueError: Dictionary and model do not fit, there is nothing to read, a line is broken, or a setting is out of
            range.
        OSError: The texts cannot be read.

    Example:
        >>> from crosstrace.replacement_model import ReplacementModel
        >>> model = ReplacementModel.demo()
        >>> evaluate(model, model.transcoders, ["Dallas is a city in Texas ."], layer_tokens=0).tokens
        7
    """
    texts = as_texts(texts)
    if model.tokenizer is None:
        raise ValueError(f"model {model.name} has no tokenizer, so it cannot read texts")
    used = in_use(dictionary, model)
    length = context_length or min(CONTEXT_LENGTH, model.description.max_positions)
    _check_settings(model, length, tokens, layer_tokens, batch_tokens)
    usual = _BATCH_TOKENS.get(used.device.type, _BATCH_TOKENS["cuda"])
    at_a_time = batch_tokens or min(usual, _affordable_tokens(used, model.description, length))
    run = _Evaluation(model, used)
    windows = _windows(model, texts, length, tokens, layer_tokens)
    cost = _RUNS * tokens + _ALONE * len(used.depths) * min(layer_tokens, tokens)
    showing = token_progress("evaluating", tokens, cost, progress)
    with without_probabilities(model.sites.text_model), showing as advance:
        try:
            for batch in _batches(windows, at_a_time):
                run.add(batch, advance)
        except Exception as error:
            if is_out_of_memory(error):
                raise MemoryError(
                    f"not enough memory for {at_a_time:,} tokens at a time: give fewer with --batch-tokens"
                ) from error
            raise
    if not run.tokens:
        left_out = f" ({texts.empty:,} empty, {texts.broken:,} broken)" if texts.empty or texts.broken else ""
        raise ValueError(
            f"the corpus {', '.join(texts.names)} has no text of more than {model.description.excluded_first} "
            f"tokens{left_out}: nothing to read"
        )
    return run.report(texts.names, length)


def in_use(
    dictionary: SparseDictionary | DictionaryInUse,
    model: LoadedModel,
    dtype: torch.dtype | None = None,
    memory_budget: int | str | None = None,
) -> DictionaryInUse:
    """Return a dictionary in use on a model's device.

    Args:
        dictionary: Transcoders or SAEs; what is in use already stays as it is.
        model: The model.
        dtype: The dtype of encoders and decoders; None: as stored.
        memory_budget: Bytes for weights and rows, or text such as `"8GB"`; None: 80 % of what is free on the device.

    Raises:
        ValueError: Dictionary and model do not fit, nothing can be spliced in where the dictionary writes, or the budget is
            not a size.
    """
    used = put_to_use(dictionary, model.device, dtype, memory_budget)
    used.check_fits(model.description, model.name)
    if used.writes.is_branch:
        raise ValueError(
            f"{used.name}: writes {used.writes.value}, which is read from the residual stream and not its whole: what is "
            "put there would not take its place"
        )
    return used


def _check_settings(model: LoadedModel, length: int, tokens: int, layer_tokens: int, batch_tokens: int | None) -> None:
    longest, excluded = model.description.max_positions, model.description.excluded_first
    if not excluded < length <= longest:
        raise ValueError(
            f"contexts of {length:,} tokens do not suit {model.name}: it takes at most {longest:,} tokens, and the first "
            f"{excluded} are not counted"
        )
    for name, value, least in (
        ("tokens", tokens, 1),
        ("tokens for single layers", layer_tokens, 0),
        ("tokens at a time", 1 if batch_tokens is None else batch_tokens, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: {value} is too few; at least {least}")


def _affordable_tokens(used: DictionaryInUse, description: ModelDescription, length: int) -> int:
    """How many tokens at a time fit into the memory: reconstructions and residuals of all layers, and what attention holds."""
    kept = len(used.depths) * (used.d_model + description.d_model + (used.d_model if used.cross_layer else 0))
    passing = 16 * description.d_model + 3 * description.n_heads * length
    budget = used.memory_budget or usable_bytes(used.device)
    return max(length, int(_BATCH_SHARE * budget) // (4 * (kept + passing)))


@dataclass(frozen=True)
class _Window:
    """A context, how many first positions are not counted, and whether single layers are replaced in it."""

    tokens: list[int]
    excluded: int
    alone: bool

    @property
    def counted(self) -> int:
        return len(self.tokens) - self.excluded


def _windows(
    model: LoadedModel, texts: Corpus | Texts, length: int, tokens: int, layer_tokens: int
) -> Iterator[_Window]:
    """Yield contexts until enough tokens are counted; the last one is cut to the number."""
    counted = 0
    for context in contexts(texts, model.tokenizer, length, 1, Cursor()):
        excluded = model.description.excluded_first_of(context.tokens)
        cut = context.tokens[: excluded + tokens - counted]
        if len(cut) > excluded:
            yield _Window(cut, excluded, counted < layer_tokens)
            counted += len(cut) - excluded
        if counted >= tokens:
            return


def _batches(windows: Iterator[_Window], tokens: int) -> Iterator[list[_Window]]:
    """Group windows in their order, padding to the longest included."""
    batch: list[_Window] = []
    for window in windows:
        width = max(len(each.tokens) for each in [*batch, window])
        if batch and width * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


class _Evaluation:
    """The sums of an evaluation."""

    def __init__(self, model: LoadedModel, used: DictionaryInUse) -> None:
        self.model, self.used = model, used
        self.tokens = self.predictions = self.layer_tokens = self.layer_predictions = 0
        # Where one set of latents stands for several depths, it is that of the deepest.
        self._n_features = {
            depth: used.n_features.get(depth, used.n_features[used.layers[-1]]) for depth in used.depths
        }
        self.statistics = {
            depth: LayerStatistics(count, used.d_model, used.device) for depth, count in self._n_features.items()
        }
        # Cross-entropies of the model, of all layers replaced, of all zeroed; KL; equal top tokens.
        self._sums = [0.0] * 5
        self._deltas = dict.fromkeys(used.depths, (0.0, 0.0))  # sum and sum of squares

    def add(self, batch: Sequence[_Window], advance: Callable[[float], None]) -> None:
        """Add some contexts; `advance(cost)` is called for each part of the work."""
        padded_bw, lengths_b = pad([window.tokens for window in batch])
        excluded_b = np.array([window.excluded for window in batch])
        tokens_bw = torch.from_numpy(padded_bw)
        counted_bw = torch.from_numpy(without_first(lengths_b, excluded_b))
        predicted_bw = counted_bw.clone()
        predicted_bw[range(len(batch)), lengths_b - 1] = False  # the last token of a context is followed by none
        alone = sum(window.alone for window in batch)

        def observe(layer: int, site_xd: Tensor, made_xd: Tensor, features: Features) -> None:
            self.statistics[layer].add(site_xd, made_xd, features[1])

        counted, counted_alone = int(counted_bw.sum()), int(counted_bw[:alone].sum())
        runs = Batch(self.model.sites, self.used, tokens_bw, counted_bw)
        outputs = [runs.model(observe, alone)]
        advance(counted / 2)
        for run in (runs.replaced, runs.zeroed):
            outputs.append(run())
            advance(counted / 2)
        normed = [output_bwd[predicted_bw.to(output_bwd.device)] for output_bwd in outputs]
        following_y = tokens_bw.roll(-1, 1)[predicted_bw]
        self._add_losses(normed, following_y, lambda share: advance(share * _RUNS / 2 * counted))
        if alone:
            self._add_alone(
                runs, normed[0], following_y, predicted_bw[:alone], lambda share: advance(share * counted_alone)
            )
        self.tokens += counted
        self.predictions += len(following_y)
        self.layer_tokens += counted_alone

    def _add_losses(self, normed: Sequence[Tensor], following_y: Tensor, done: Callable[[float], None]) -> None:
        if not len(following_y):
            return
        losses = next_token_losses(self.model.sites, normed, following_y, done)
        same = (losses.top_rx[0] == losses.top_rx[1]).sum().item()
        found = [*losses.cross_entropy_rx.sum(1).tolist(), losses.kl_x.sum().item(), same]
        self._sums = [before + more for before, more in zip(self._sums, found, strict=True)]

    def _add_alone(
        self,
        runs: Batch,
        model_yd: Tensor,
        following_y: Tensor,
        predicted_bw: Tensor,
        advance: Callable[[float], None],
    ) -> None:
        n_predicted = int(predicted_bw.sum())
        normed = [model_yd[:n_predicted]]
        for layer in self.used.depths:
            output_bwd = runs.alone(layer)
            normed.append(output_bwd[predicted_bw.to(output_bwd.device)])
            advance(_ALONE - 0.5)
        if not n_predicted:
            return
        losses_ry = next_token_losses(
            self.model.sites,
            normed,
            following_y[:n_predicted],
            lambda share: advance(share * 0.5 * len(self.used.depths)),
        ).cross_entropy_rx
        for layer, delta_y in zip(self.used.depths, losses_ry[1:] - losses_ry[0], strict=True):
            total, squares = self._deltas[layer]
            self._deltas[layer] = total + delta_y.sum().item(), squares + delta_y.square().sum().item()
        self.layer_predictions += n_predicted

    def report(self, corpus: Sequence[str], length: int) -> EvaluationReport:
        n = self.predictions
        model, replaced, zero, kl, same = (total / n if n else math.nan for total in self._sums)
        return EvaluationReport(
            model_name=self.model.name,
            dictionary_name=self.used.name,
            reads=self.used.reads.value,
            writes=self.used.writes.value,
            cross_layer=self.used.cross_layer,
            corpus=list(corpus),
            context_length=length,
            tokens=self.tokens,
            predictions=n,
            layer_tokens=self.layer_tokens,
            layer_predictions=self.layer_predictions,
            layers=[self._layer(layer) for layer in self.used.depths],
            all=AllQuality(model, replaced, zero, kl, same),
        )

    def _layer(self, layer: int) -> LayerQuality:
        found, reader, n = self.statistics[layer], self.used.reader, self.layer_predictions
        delta = error = None
        if n:
            total, squares = self._deltas[layer]
            delta = total / n
            error = math.sqrt(max(squares / n - delta**2, 0) / n)
        return LayerQuality(
            layer=layer,
            n_features=self._n_features[layer],
            l0=found.l0,
            l0_config=reader.l0_by_layer.get(layer, reader.l0),
            fvu=found.fvu,
            fvu_weighted=found.fvu_weighted,
            dead=found.dead,
            frequent=found.frequent,
            ce_delta=delta,
            ce_delta_error=error,
        )
