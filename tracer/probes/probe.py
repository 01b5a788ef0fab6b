"""A probe: a sparse logistic read-out on latents, with the tests that say what it is worth.

Letters: E texts, T those held out, k the probe's latents, P positions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from crosstrace.graphs.fingerprints import same_weights
from crosstrace.graphs.tensor_file import TensorSource, map_tensors, write_tensors
from crosstrace.replacement_model import LoadedModel, Prompt, weight_fingerprints
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.prompts import prompt_ids, token_strings
from crosstrace.tracer.probes.examples import Example, check_apart, group_numbers
from crosstrace.tracer.probes.fit import Auroc, Fitted, Matrix, area, behind, fit, held_out, with_interval
from crosstrace.tracer.probes.pooled import Columns, Pooling, pool, pooled_rows, token_latents

FORMAT, VERSION = "crosstrace-probe", 1
# Latents that a score names at each token.
_NAMED = 3


@dataclass(frozen=True)
class ProbeLatent:
    """A latent that a probe reads.

    Attributes:
        dictionary: Its dictionary's number in `Probe.dictionaries`.
        layer: Its layer.
        feature: Its number in the layer.
        weight: What a unit of its activation adds to the score.
        share: The mean absolute contribution on the training texts, as a share of all latents'.
        name: `resid_post/12/417`, or `L3/417` of transcoders.
        label: What it is called, or "".
    """

    dictionary: int
    layer: int
    feature: int
    weight: float
    share: float
    name: str
    label: str


@dataclass(frozen=True)
class ProbeReport:
    """What the held-out texts say of a probe.

    Attributes:
        texts: How many texts there are, with the property and without.
        held_out: How many of them are held out.
        groups: How many groups.
        latents: The probe.
        raw: The same read-out on the model's raw activations at the same sites (L2).
        best_latent: The single latent that is best on the training texts.
        best_latent_name: Which one that is.
        tokens: A read-out on the text's length and on which tokens it holds, how often.
        shuffled: The probe trained on shuffled labels, tested on the true ones: what chance gives.
        raw_behind: The lower end of the 95 % interval of the probe's AUROC minus that of `raw`, resampled together.
        tokens_behind: The same for `tokens`.
    """

    texts: tuple[int, int]
    held_out: tuple[int, int]
    groups: int
    latents: Auroc
    raw: Auroc
    best_latent: Auroc
    best_latent_name: str
    tokens: Auroc
    shuffled: Auroc
    raw_behind: float
    tokens_behind: float

    def verdict(self) -> str:
        """Return the first line of the report: whether latents say more than what is simpler."""
        as_well = [
            f"{name} ({found.value:.3f})"
            for name, found, lead in (
                ("raw activations", self.raw, self.raw_behind),
                ("length and token counts", self.tokens, self.tokens_behind),
            )
            if lead <= 0
        ]
        mine = f"{self.latents.value:.3f}"
        if as_well:
            return f"no better than {' or '.join(as_well)}: the probe on latents ({mine})"
        return f"the probe on latents ({mine}) does better than raw activations, and than length and token counts"


@dataclass(frozen=True)
class Scores:
    """A probe's score at each token.

    Attributes:
        probe_name: What it is a probe of.
        tokens: (P,) the tokens' texts.
        scores_p: (P,) in nats, NaN at positions that carry no latents.
        whole: The score of the text, pooled as in training.
        latents: For each position the latents that add most to the score, as (name, label, what it adds).
    """

    probe_name: str
    tokens: Sequence[str]
    scores_p: Sequence[float]
    whole: float
    latents: Sequence[Sequence[tuple[str, str, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON has them."""
        return {
            "name": self.probe_name,
            "score": self.whole,
            "scores": [None if np.isnan(score) else score for score in self.scores_p],
            "latents": [
                [{"latent": name, "label": label, "adds": adds} for name, label, adds in at] for at in self.latents
            ],
        }


@dataclass(frozen=True)
class Probe:
    """A sparse logistic read-out on latents.

    Attributes:
        name: What it is a probe of.
        model_name: The model that it was trained in.
        dictionaries: The names of the dictionaries that it reads.
        fingerprints: Of each dictionary's and the model's weights.
        pooling: How the tokens of a text become one vector.
        bias: The score of a text without any of its latents.
        latents: (k,) what it reads, the largest share first.
        report: What the held-out texts say of it.
    """

    name: str
    model_name: str
    dictionaries: Sequence[str]
    fingerprints: Sequence[Mapping[str, str]]
    pooling: Pooling
    bias: float
    latents: Sequence[ProbeLatent]
    report: ProbeReport

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe as `.safetensors`.

        Raises:
            OSError: The file cannot be written; nothing is left behind.
        """
        header = {
            "version": VERSION,
            "name": self.name,
            "model": self.model_name,
            "dictionaries": list(self.dictionaries),
            "fingerprints": [dict(prints) for prints in self.fingerprints],
            "pooling": self.pooling.value,
            "names": [latent.name for latent in self.latents],
            "labels": [latent.label for latent in self.latents],
            "report": asdict(self.report),
        }
        columns = {
            name: np.array([getattr(latent, name) for latent in self.latents], dtype)
            for name, dtype in (
                ("dictionary", np.int32),
                ("layer", np.int32),
                ("feature", np.int32),
                ("weight", np.float64),
                ("share", np.float64),
            )
        }
        columns["bias"] = np.array([self.bias])
        write_tensors(
            Path(path), (FORMAT, json.dumps(header)), [TensorSource.of(name, array) for name, array in columns.items()]
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Probe:
        """Read a probe.

        Raises:
            OSError: There is no such file.
            ValueError: It holds no probe, or is of a newer version; one line that names it.
        """
        metadata, tensors = map_tensors(Path(path))
        if FORMAT not in metadata:
            raise ValueError(f"{path}: not a probe (no {FORMAT!r} in its header); crosstrace probe writes them")
        try:
            header = json.loads(metadata[FORMAT])
            if header["version"] > VERSION:
                raise ValueError(
                    f"written by a newer crosstrace: format {header['version']}, this reads up to {VERSION}"
                )
            columns = [tensors[name].tolist() for name in ("dictionary", "layer", "feature", "weight", "share")]
            latents = [ProbeLatent(*row) for row in zip(*columns, header["names"], header["labels"], strict=True)]
            report: dict[str, Any] = {
                key: Auroc(**value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
                for key, value in header["report"].items()
            }
            return Probe(
                header["name"],
                header["model"],
                header["dictionaries"],
                header["fingerprints"],
                Pooling(header["pooling"]),
                float(tensors["bias"][0]),
                latents,
                ProbeReport(**report),
            )
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{path}: {' '.join(str(problem).split())}") from None

    def score(self, model: LoadedModel, prompt: Prompt, used: Sequence[DictionaryInUse]) -> Scores:
        """Score each token of a prompt, and all of it.

        Args:
            model: The model that the probe was trained in.
            prompt: A text, or token ids.
            used: The dictionaries that it reads; others may be among them.

        Raises:
            ValueError: The prompt cannot be used, or the model or a dictionary is another one; one line that names it.
        """
        return self.scorer(model, used)(prompt)

    def scorer(self, model: LoadedModel, used: Sequence[DictionaryInUse]) -> Callable[[Prompt], Scores]:
        """Return a function that scores prompts as `score` does; model and dictionaries are checked once.

        Raises:
            ValueError: The model or a dictionary is another one.
        """
        own = self._own(model, used)
        columns, size = Columns.of(own), model.description
        where = [columns.offsets[latent.dictionary, latent.layer] + latent.feature for latent in self.latents]
        weights = np.array([latent.weight for latent in self.latents])

        def score(prompt: Prompt) -> Scores:
            ids = prompt_ids(prompt, model.tokenizer, model.name, size.vocab_size, size.max_positions).tolist()
            first = size.excluded_first_of(ids)
            if len(ids) <= first:
                raise ValueError(f"the prompt has {len(ids)} tokens, and the first {first} carry no latents")
            [latents_pc] = token_latents(model, [ids], [first], own, columns)
            read_pk = np.asarray(latents_pc[:, where].todense(), dtype=np.float64)
            added_pk = read_pk * weights
            strongest = np.argsort(-abs(added_pk), axis=1, kind="stable")[:, :_NAMED]
            named = [
                [(self.latents[i].name, self.latents[i].label, float(added[i])) for i in order.tolist() if added[i]]
                for added, order in zip(added_pk, strongest, strict=True)
            ]
            return Scores(
                self.name,
                token_strings(ids, model.tokenizer),
                [*([float("nan")] * first), *(added_pk.sum(1) + self.bias).tolist()],
                float(pooled_rows(read_pk, self.pooling) @ weights + self.bias),
                [*([[]] * first), *named],
            )

        return score

    def _own(self, model: LoadedModel, used: Sequence[DictionaryInUse]) -> list[DictionaryInUse]:
        """Return the dictionaries that the probe reads, in its order."""
        known = [(dictionary, weight_fingerprints(model, dictionary)) for dictionary in used]
        own = []
        for name, prints in zip(self.dictionaries, self.fingerprints, strict=True):
            same = [dictionary for dictionary, its in known if same_weights("transcoders", prints, its)]
            if not same:
                given = ", ".join(dictionary.name for dictionary in used) or "none"
                raise ValueError(f"probe {self.name} reads {name}, which is not among the dictionaries given: {given}")
            own.append(same[0])
        if known and same_weights("model", self.fingerprints[0], known[0][1]) is False:
            raise ValueError(f"probe {self.name} was trained in {self.model_name}; {model.name} has other weights")
        return own


def fit_probe(
    model: LoadedModel,
    positive: Sequence[Example],
    negative: Sequence[Example],
    used: Sequence[DictionaryInUse],
    pooling: Pooling = Pooling.MEAN,
    *,
    name: str = "probe",
    seed: int = 0,
    progress: bool | None = None,
) -> Probe:
    """Fit a sparse read-out of a property on latents, and test it on texts of other groups.

    Args:
        model: The base model, or a replacement model.
        positive: Texts that have the property.
        negative: Texts that lack it.
        used: The dictionaries, in use; see `crosstrace.replacement_model.dictionaries.use.in_use`.
        pooling: How the tokens of a text become one vector: the mean, the last one, or the largest activations.
        name: What it is a probe of.
        seed: Of the split, the folds, the shuffle and the bootstrap.
        progress: Show progress on standard error; None: on a terminal.

    Returns:
        The probe, fitted on the texts that are not held out.

    Raises:
        ValueError: A text is in both lists or cannot be read, there are too few groups, no dictionary is given, or
            scikit-learn is not installed.

    Example:
        >>> probe = fit_probe(model, read_examples("texas.jsonl"), read_examples("others.jsonl"), [sae], Pooling.LAST)
        >>> probe.report.latents.value, probe.report.verdict()
    """
    if not used:
        raise ValueError("no dictionary is given to probe with")
    check_apart(positive, negative)
    examples = [*positive, *negative]
    labels_e = np.array([True] * len(positive) + [False] * len(negative))
    groups_e = np.array(group_numbers([example.group for example in examples]))
    tested_e = held_out(labels_e, groups_e, seed)  # first: it needs no model to know that there are too few texts
    pooled = pool(model, examples, used, pooling, progress)
    split = _Split(labels_e, groups_e, tested_e, seed)
    probe = split.fit(pooled.latents_ec)
    latents, (single, sign) = split.scores(probe, pooled.latents_ec), split.best_column(pooled.latents_ec)
    raw = split.scores(split.fit(pooled.raw_ed, sparse=False), pooled.raw_ed)
    counts_ec = _token_counts(pooled.tokens)
    tokens = split.scores(split.fit(counts_ec), counts_ec)
    shuffled = split.scores(split.fit(pooled.latents_ec, labels_e=split.shuffled()), pooled.latents_ec)
    columns = Columns.of(used)
    best = columns.latent(single)
    labels_t, groups_t = labels_e[tested_e], groups_e[tested_e]
    best_t = sign * np.asarray(pooled.latents_ec[tested_e][:, [single]].todense()).ravel()

    def tested(scores_t: NDArray[np.float64]) -> Auroc:
        return with_interval(scores_t, labels_t, groups_t, seed)

    report = ProbeReport(
        texts=(len(positive), len(negative)),
        held_out=(int(labels_t.sum()), int((~labels_t).sum())),
        groups=len(np.unique(groups_e)),
        latents=tested(latents),
        raw=tested(raw),
        best_latent=tested(best_t),
        best_latent_name=("not " if sign < 0 else "") + _name(used[best[0]], *best[1:]),
        tokens=tested(tokens),
        shuffled=tested(shuffled),
        raw_behind=behind(latents, raw, labels_t, groups_t, seed),
        tokens_behind=behind(latents, tokens, labels_t, groups_t, seed),
    )
    return Probe(
        name,
        model.name,
        [dictionary.name for dictionary in used],
        [weight_fingerprints(model, dictionary) for dictionary in used],
        pooling,
        probe.bias,
        _latents(probe, pooled.latents_ec[~tested_e], used, columns),
        report,
    )


def _latents(
    probe: Fitted,
    trained: scipy.sparse.csr_array,
    used: Sequence[DictionaryInUse],
    columns: Columns,
) -> list[ProbeLatent]:
    share_c = np.asarray(trained.mean(axis=0)).ravel() * abs(probe.weights_c)
    share_c = share_c / max(share_c.sum(), np.finfo(np.float64).tiny)
    found = []
    for column in sorted(np.flatnonzero(probe.weights_c).tolist(), key=lambda column: (-share_c[column], column)):
        number, layer, feature = columns.latent(column)
        found.append(
            ProbeLatent(
                number,
                layer,
                feature,
                float(probe.weights_c[column]),
                float(share_c[column]),
                _name(used[number], layer, feature),
                used[number].labels.get((layer, feature), ""),
            )
        )
    return found


def _name(dictionary: DictionaryInUse, layer: int, feature: int) -> str:
    if isinstance(dictionary, Transcoders):
        return f"L{layer}/{feature}"
    return f"{dictionary.reads.short_name}/{layer}/{feature}"


def _token_counts(tokens: Sequence[Sequence[int]]) -> scipy.sparse.csr_array:
    """(E, C): the number of tokens, then how often each token of these texts occurs."""
    distinct = {token: column for column, token in enumerate(sorted({t for ids in tokens for t in ids}), 1)}
    rows, columns, values = [], [], []
    for row, ids in enumerate(tokens):
        for column, value in [(0, len(ids)), *((distinct[token], 1) for token in ids)]:
            rows.append(row)
            columns.append(column)
            values.append(float(value))
    return scipy.sparse.csr_array((values, (rows, columns)), shape=(len(tokens), len(distinct) + 1), dtype=np.float32)


@dataclass(frozen=True)
class _Split:
    """The texts, and which of them are held out."""

    labels_e: NDArray[np.bool_]
    groups_e: NDArray[np.int64]
    tested_e: NDArray[np.bool_]
    seed: int

    def fit(self, rows: Matrix, sparse: bool = True, labels_e: NDArray[np.bool_] | None = None) -> Fitted:
        """Fit on the texts that are not held out."""
        labels = self.labels_e if labels_e is None else labels_e
        return fit(rows[~self.tested_e], labels[~self.tested_e], self.groups_e[~self.tested_e], sparse, self.seed)

    def scores(self, fitted: Fitted, rows: Matrix) -> NDArray[np.float64]:
        """Return the scores (T,) of the texts that are held out."""
        return fitted.scores(rows[self.tested_e])

    def best_column(self, latents_ec: scipy.sparse.csr_array) -> tuple[int, int]:
        """Return the column that is best alone on the training texts, and 1, or -1 if less of it is a sign."""
        trained = latents_ec[~self.tested_e].tocsc()
        labels = self.labels_e[~self.tested_e]
        used = np.flatnonzero(np.diff(trained.indptr))
        if not len(used):
            raise ValueError("no latent is active in the texts to train on")
        found = [area(np.asarray(trained[:, [column]].todense()).ravel(), labels) for column in used.tolist()]
        best = int(np.argmax(np.abs(np.array(found) - 0.5)))
        return int(used[best]), 1 if found[best] >= 0.5 else -1

    def shuffled(self) -> NDArray[np.bool_]:
        """Return the labels in another order."""
        return np.random.default_rng(self.seed).permutation(self.labels_e)
