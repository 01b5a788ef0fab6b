"""A sample of a corpus without cards: where statistics are wanted and cards exist already, or nobody needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crosstrace.graphs.files import check_writable
from crosstrace.replacement_model import Corpus, LoadedModel, Texts, weight_fingerprints
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.model import dictionary_of
from crosstrace.replacement_model.padding import pad, without_first
from crosstrace.replacement_model.prompts import token_strings
from crosstrace.replacement_model.readouts.feature_stream import stream_features
from crosstrace.replacement_model.readouts.norm_scales import watched_norms
from crosstrace.replacement_model.texts import CorpusContext, Cursor, as_texts, contexts
from crosstrace.tracer.defaults import CONTEXT_LENGTH, SAMPLE_TOKENS
from crosstrace.tracer.progress import corpus_progress
from crosstrace.tracer.samples.sample import CorpusSample
from crosstrace.tracer.samples.taking import SampleTaker

# Tokens run at a time, padding included: enough to keep a GPU busy; on a CPU as many as leave what a layer makes of them in
# the caches. Gemma 3 270M on two cores, contexts of 256: 512, 1,024, 2,048 and 4,096 tokens at a time go through at 396, 510,
# 458 and 404 tokens a second.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


def build_sample(
    model: LoadedModel,
    corpus: Corpus | Texts | str | os.PathLike[str] | Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    tokens: int = SAMPLE_TOKENS,
    context_length: int | None = None,
    batch_tokens: int | None = None,
    progress: bool | None = None,
    dictionary: DictionaryInUse | None = None,
) -> CorpusSample:
    """Stream a corpus through the model and keep a sample of it with everything that fires.

    `build_cards` takes the same sample in the same pass as the cards; this is for those who have cards, or need none.

    Args:
        model: The replacement model, or a base model, with a tokenizer.
        corpus: A `Corpus`, the path of one file, or texts.
        path: The file; None: a temporary one, which goes with the sample.
        tokens: The most tokens that the sample may hold.
        context_length: Tokens of a context, `<bos>` included; None: 256, or what the model takes if that is less.
        batch_tokens: Tokens run at a time, padding included; None: 1,024 on a CPU, 32,768 on a GPU.
        progress: Show a bar on standard error; None: if that is a terminal.
        dictionary: Whose features; None for the replacement model's transcoders.

    Returns:
        The sample, as it is in the file.

    Raises:
        ValueError: There is nothing to read, or a line is broken.
        OSError: The corpus cannot be read or the file cannot be written.

    Example:
        >>> sample = build_sample(ReplacementModel.demo(), ["Dallas is a city in Texas"], "sample.safetensors")
        >>> sample.positions
        6
    """
    corpus = as_texts(corpus)
    if model.tokenizer is None:
        raise ValueError(f"model {model.name} has no tokenizer, so it cannot read a corpus")
    used = dictionary_of(model, dictionary)
    if path is not None:
        check_writable(Path(path))
    length = context_length or min(CONTEXT_LENGTH, model.description.max_positions)
    shortest = model.description.excluded_first + 1
    taker = SampleTaker(features_by_layer(used), tokens)
    read = n_contexts = 0
    with corpus_progress(corpus.total, progress) as bar:
        bar.begin_reading(0)
        stream = contexts(corpus, model.tokenizer, length, shortest, Cursor())
        for batch in batches(stream, batch_tokens or usual_batch_tokens(model)):
            some = [context.tokens for context in batch]
            _run(model, used, taker, some, n_contexts)
            n_contexts, read = n_contexts + len(some), read + sum(map(len, some))
            bar.reading(batch[-1].read, read)
    if not n_contexts:
        raise ValueError(
            f"the corpus {', '.join(corpus.names)} has no text of {shortest} tokens or more: nothing to read"
        )
    header = sample_header(
        model.name,
        used.name,
        weight_fingerprints(model, used),
        {"names": corpus.names, "contexts": n_contexts, "tokens": read},
    )
    if path is not None:
        taker.write(Path(path), header, strings_of(model))
        return CorpusSample(path)
    with TemporaryDirectory() as folder:  # mapped files stay readable after they are deleted
        temporary = Path(folder) / "sample.safetensors"
        taker.write(temporary, header, strings_of(model))
        return CorpusSample(temporary)


def batches(stream: Iterator[CorpusContext], tokens: int) -> Iterator[list[CorpusContext]]:
    """Group contexts in their order into batches.

    Args:
        stream: The contexts.
        tokens: The most tokens of a batch, padding to its longest context included; one context is always taken.
    """
    batch: list[CorpusContext] = []
    width = 0
    for context in stream:
        width = max(width, len(context.tokens))
        if batch and width * (len(batch) + 1) > tokens:
            yield batch
            batch, width = [], len(context.tokens)
        batch.append(context)
    if batch:
        yield batch


def usual_batch_tokens(model: LoadedModel) -> int:
    """Return how many tokens of a corpus run at a time where nobody says: 1,024 on a CPU, 32,768 on a GPU."""
    return _BATCH_TOKENS.get(model.device.type, _BATCH_TOKENS["cuda"])


def features_by_layer(used: DictionaryInUse) -> list[int]:
    """Return the number of features of every layer up to the last that a dictionary has; 0 for those that it lacks."""
    return [used.n_features.get(layer, 0) for layer in range(used.layers[-1] + 1)]


def sample_header(model: str, transcoders: str, fingerprints: dict[str, str], corpus: dict[str, Any]) -> dict[str, Any]:
    """Return what a sample says about itself."""
    return {"model": model, "transcoders": transcoders, "fingerprints": fingerprints, "corpus": corpus}


def strings_of(model: LoadedModel) -> Callable[[NDArray[np.int64]], list[str]]:
    """Return the function that gives tokens' texts."""
    return lambda ids: token_strings(ids.tolist(), model.tokenizer)


def _run(
    model: LoadedModel, used: DictionaryInUse, taker: SampleTaker, batch: Sequence[Sequence[int]], first: int
) -> None:
    tokens_bw, lengths_b = pad(batch)
    wanted_bw = without_first(lengths_b, np.array([model.description.excluded_first_of(context) for context in batch]))
    taker.begin(tokens_bw, wanted_bw, first)

    def take(layer: int, places: torch.Tensor, features: torch.Tensor, values: torch.Tensor) -> None:
        taker.add(layer, places.cpu().numpy(), features.cpu().numpy(), values.cpu().numpy())

    wanted = torch.from_numpy(wanted_bw)
    with watched_norms(model, wanted, taker.see_norm):
        stream_features(model, torch.from_numpy(tokens_bw), wanted, take, used)
    taker.end()
