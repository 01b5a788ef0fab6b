"""Feature cards from the user's own texts: what a corpus shows of every feature of transcoders, or of SAEs.

Bricken et al. 2023, "Towards Monosemanticity", made top contexts, activation histograms and promoted tokens the usual view
of a feature. Here contexts are ranked by their largest activation, one for each context and wording (`tops.py`), and
promoted tokens are the decoder's direct logits (`replacement_model/readouts/direct_logits.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.files import check_writable
from crosstrace.replacement_model import LoadedModel, SparseDictionary
from crosstrace.replacement_model.demo import DEMO_DIR
from crosstrace.replacement_model.demo_chat import CHAT_DEMO_DIR
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.dictionaries.readers.card_places import cards_path
from crosstrace.replacement_model.dictionaries.use import in_use
from crosstrace.replacement_model.fingerprints import weight_fingerprints
from crosstrace.replacement_model.memory import is_out_of_memory, usable_bytes
from crosstrace.replacement_model.model import dictionary_of
from crosstrace.replacement_model.padding import without_first
from crosstrace.replacement_model.readouts.direct_logits import coherence_by_chance
from crosstrace.replacement_model.readouts.feature_stream import stream_features
from crosstrace.replacement_model.readouts.norm_scales import watched_norms
from crosstrace.replacement_model.texts import Corpus, Texts, as_texts, contexts
from crosstrace.tracer.cards.file import write_cards, write_layer_logits
from crosstrace.tracer.cards.log import ContextBatch, Window
from crosstrace.tracer.cards.run import CardRun, asked_to_stop
from crosstrace.tracer.defaults import CARD_CONTEXTS, CARD_LOGITS, CONTEXT_LENGTH
from crosstrace.tracer.progress import CorpusBar, corpus_progress
from crosstrace.tracer.samples.build import batches, features_by_layer, strings_of, usual_batch_tokens
from crosstrace.tracer.samples.sample import sample_path

# The share of the memory that arrays of top contexts may take before they move to files.
_ARRAYS_SHARE = 0.25


def build_cards(
    model: LoadedModel,
    corpus: Corpus | Texts | str | os.PathLike[str] | Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    context_length: int | None = None,
    top: int = CARD_CONTEXTS,
    window: Window | None = None,
    logits: int = CARD_LOGITS,
    batch_tokens: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
    dictionary: SparseDictionary | DictionaryInUse | None = None,
    sample_tokens: int = 0,
) -> FeatureCards:
    """Stream a corpus through the model and write a card for every feature that fires.

    Memory does not grow with the corpus. The run keeps its state beside the file, in the folder `PATH.partial`: on Ctrl-C
    (the first lets the batch finish), on errors, and about every minute. With `resume` it continues from there and writes
    the same file; the folder is deleted at the end.

    Args:
        model: The replacement model, or a base model, with a tokenizer.
        corpus: A `Corpus`, the path of one file, or texts.
        path: The file; None puts it beside the transcoders, where other functions find it. The demo keeps the cards it
            came with: for it, None is `cards.safetensors` in the current folder.
        context_length: Tokens of a context, `<bos>` included; None: 256, or what the model takes if that is less.
        top: Contexts kept for each feature.
        window: Tokens shown around a context's peak; None: 24 before and 8 after it.
        logits: Tokens kept at each end of the direct logits.
        batch_tokens: Tokens run at a time, padding included; None: 1,024 on a CPU, 32,768 on a GPU, and as before when
            resuming. Results depend on it only through rounding.
        resume: Continue an interrupted run.
        progress: Show a bar on standard error; None: if that is a terminal.
        dictionary: Whose features get cards: SAEs, as `open_sae` returns them, or any other dictionary. None for the
            replacement model's transcoders.
        sample_tokens: Keep up to this many tokens of the corpus with everything that fires in them, in a sample beside
            the cards (`cards.sample.safetensors`), for global weights and tests of labels; 0: none is kept. Memory grows
            with the sample: 8 bytes for each feature that fires.

    Returns:
        The cards, as they are in the file.

    Raises:
        ValueError: There is nothing to read, a line is broken, a setting is out of range, or the state belongs to
            another run.
        OSError: The corpus cannot be read or the file cannot be written.
        CardsInterrupted: Ctrl-C was pressed; the state is kept.

    Example:
        >>> cards = build_cards(ReplacementModel.demo(), ["Dallas is a city in Texas"], "cards.safetensors")
        >>> cards.contexts(next(iter(cards)))[0].tokens
        ['<bos>', 'Dallas', 'is', 'a', 'city', 'in', 'Texas']
    """
    corpus = as_texts(corpus)
    if model.tokenizer is None:
        raise ValueError(f"model {model.name} has no tokenizer, so it cannot read a corpus")
    used = model_dictionary(model, dictionary)
    window = window or Window()
    length = context_length or min(CONTEXT_LENGTH, model.description.max_positions)
    excluded = model.description.excluded_first
    _check_settings(model, length, excluded, top, window, logits, batch_tokens, sample_tokens)
    target = Path(path) if path is not None else _usual_path(used.name)
    check_writable(target)
    identity: dict[str, Any] = {
        "model": model.name,
        "transcoders": used.name,
        "fingerprints": weight_fingerprints(model, used),
        "corpus": corpus.names,
        "context length": length,
        "excluded first positions": excluded,
        "number of contexts": top,
        "window": [window.before, window.after],
        "number of promoted tokens": logits,
        "dtype": str(used.weights_dtype),
    }
    if sample_tokens:
        identity["number of tokens in the sample"] = sample_tokens
    memory = int(_ARRAYS_SHARE * (used.memory_budget or usable_bytes(torch.device("cpu"))))
    run = CardRun(Path(f"{target}.partial"), identity, features_by_layer(used), top, memory, resume, sample_tokens)
    run.batch_tokens = batch_tokens or run.batch_tokens or usual_batch_tokens(model)
    try:
        with asked_to_stop() as asked, corpus_progress(corpus.total, progress) as bar:
            if not run.finished:
                _read_corpus(model, used, corpus, run, window, asked, bar)

            def known(count: int) -> None:
                bar.features(count)
                if asked():
                    raise run.interrupted()

            bar.begin_features(sum(layer.used for layer in run.layers))
            for layer in range(len(run.layers)):
                write_layer_logits(model, used, run, layer, logits, known)
        header = _header(model, used, corpus, run, logits)
        if run.sample is not None:
            keys = ("model", "transcoders", "fingerprints", "corpus")
            run.sample.write(sample_path(target), {key: header[key] for key in keys}, strings_of(model))
        write_cards(target, model, run, header, length)
    except BaseException:
        run.close()
        raise
    run.close(delete=True)
    return FeatureCards(target)


def _usual_path(name: str) -> Path:
    path = cards_path(name)
    in_package = path.is_relative_to(DEMO_DIR) or path.is_relative_to(CHAT_DEMO_DIR)
    return Path(path.name) if in_package else path  # the package is left as it came


def model_dictionary(model: LoadedModel, dictionary: SparseDictionary | DictionaryInUse | None) -> DictionaryInUse:
    """Return a dictionary in use with a model; None stands for a replacement model's transcoders.

    Raises:
        ValueError: It does not fit the model, or the model has no transcoders and no dictionary is named.
    """
    if dictionary is None:
        return dictionary_of(model)
    used = in_use(dictionary, model.device)
    used.check_fits(model.description, model.name)
    return used


def _check_settings(
    model: LoadedModel,
    length: int,
    excluded: int,
    top: int,
    window: Window,
    logits: int,
    batch_tokens: int | None,
    sample_tokens: int,
) -> None:
    longest = model.description.max_positions
    if not excluded < length <= longest:
        raise ValueError(
            f"contexts of {length:,} tokens do not suit {model.name}: it takes at most {longest:,} tokens, and the first "
            f"{excluded} carry no features"
        )
    for name, value, least in (
        ("contexts of a feature", top, 1),
        ("tokens before the peak", window.before, 0),
        ("tokens after the peak", window.after, 0),
        ("promoted tokens", logits, 1),
        ("tokens in the sample", sample_tokens, 0),
        ("tokens at a time", 1 if batch_tokens is None else batch_tokens, 1),
    ):
        if value < least:
            raise ValueError(f"{name}: {value} is too few; at least {least}")


def _read_corpus(
    model: LoadedModel,
    used: DictionaryInUse,
    corpus: Corpus | Texts,
    run: CardRun,
    window: Window,
    asked: Callable[[], bool],
    bar: CorpusBar,
) -> None:
    excluded = run.identity["excluded first positions"]
    stream = contexts(corpus, model.tokenizer, run.identity["context length"], excluded + 1, run.cursor)
    whole = True  # between batches, when the state can be saved
    bar.begin_reading(run.tokens)
    try:
        for batch in batches(stream, run.batch_tokens):
            whole = False
            add_batch(model, used, run, [context.tokens for context in batch], window)
            run.cursor = batch[-1].after
            whole = True
            bar.reading(batch[-1].read, run.tokens)
            if asked():
                raise run.interrupted()
            run.save_now_and_then()
    except Exception as error:
        if whole and run.tokens:
            with suppress(OSError):  # a full disk has been reported already
                run.save()
        if is_out_of_memory(error):
            raise MemoryError(
                f"not enough memory for {run.batch_tokens:,} tokens at a time: give fewer with --batch-tokens"
                + (" and continue with --resume" if run.saved else "")
            ) from error
        raise
    if not run.tokens:
        left_out = f" ({corpus.empty:,} empty, {corpus.broken:,} broken)" if corpus.empty or corpus.broken else ""
        raise ValueError(
            f"the corpus {', '.join(corpus.names)} has no text of more than {excluded} tokens{left_out}: nothing to read"
        )
    run.finished = True
    run.save()


def add_batch(
    model: LoadedModel, used: DictionaryInUse, run: CardRun, some: Sequence[Sequence[int]], window: Window
) -> None:
    """Run some contexts and add what fires to a run.

    Args:
        model: The model.
        used: Whose features.
        run: The state to add to.
        some: The contexts, as token ids.
        window: Tokens kept around a peak.
    """
    batch = ContextBatch.of(some, run.log.n_contexts, window)
    wanted_bw = without_first(
        batch.lengths_b, np.array([model.description.excluded_first_of(context) for context in some])
    )
    run.log.append_contexts(batch)

    def take(layer: int, places: torch.Tensor, features: torch.Tensor, values: torch.Tensor) -> None:
        entries = places.cpu().numpy(), features.cpu().numpy(), values.cpu().numpy()
        run.layers[layer].add(*entries, batch, run.log)
        if run.sample is not None:
            run.sample.add(layer, *entries)

    wanted = torch.from_numpy(wanted_bw)
    with ExitStack() as watching:
        if run.sample is not None:
            run.sample.begin(batch.tokens_bw, wanted_bw, batch.first)
            watching.enter_context(watched_norms(model, wanted, run.sample.see_norm))
        stream_features(model, torch.from_numpy(batch.tokens_bw), wanted, take, used)
    if run.sample is not None:
        run.sample.end()
    run.positions += int(wanted_bw.sum())
    run.tokens += int(batch.lengths_b.sum())


def _header(
    model: LoadedModel, used: DictionaryInUse, corpus: Corpus | Texts, run: CardRun, logits: int
) -> dict[str, Any]:
    before, after = run.identity["window"]
    return {
        "model": run.identity["model"],
        "transcoders": run.identity["transcoders"],
        "fingerprints": run.identity["fingerprints"],
        "corpus": {
            "names": corpus.names,
            "digest": run.cursor.digest,
            "texts": run.cursor.texts,
            "contexts": run.log.n_contexts,
            "tokens": run.tokens,
        },
        "positions": run.positions,
        "settings": {
            "context_length": run.identity["context length"],
            "excluded_first": run.identity["excluded first positions"],
            "contexts": run.identity["number of contexts"],
            "before": before,
            "after": after,
            "logits": logits,
            "coherence_by_chance": round(coherence_by_chance(model), 4),
        },
        "n_features": features_by_layer(used),
        "vocabulary_size": model.description.vocab_size,
    }
