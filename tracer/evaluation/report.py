"""What an evaluation found, and its JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosstrace.graphs.files import write_atomically


@dataclass(frozen=True)
class LayerQuality:
    """One layer of a dictionary, measured on the model as it is.

    Attributes:
        layer: The layer.
        n_features: How many features it has.
        l0: How many of them fire at a token, on average.
        l0_config: The same as the files' config has it; None if it does not say.
        fvu: Σ‖y − ŷ‖² / Σ‖y − mean y‖² over tokens.
        fvu_weighted: The same with each dimension divided by the square root of its standard deviation.
        dead: The share of the features that never fire.
        frequent: The share of the features that fire on over 10 % of the tokens.
        ce_delta: By how many nats the loss grows when the site of this layer alone is replaced by its reconstruction; None
            if it was not measured.
        ce_delta_error: The standard error of `ce_delta`, tokens taken as independent.
    """

    layer: int
    n_features: int
    l0: float
    l0_config: float | None
    fvu: float
    fvu_weighted: float
    dead: float
    frequent: float
    ce_delta: float | None
    ce_delta_error: float | None


@dataclass(frozen=True)
class AllQuality:
    """The model with the sites of all of the dictionary's layers replaced, and no errors added back.

    Attributes:
        ce_model: The loss of the model as it is: the mean cross-entropy of the next token, in nats.
        ce_replaced: The loss with every site replaced by its reconstruction.
        ce_zero: The loss with every site zeroed.
        kl: KL(model ‖ replaced), in nats, the mean over tokens.
        top1: The share of the tokens at which both have the same most probable next token.
    """

    ce_model: float
    ce_replaced: float
    ce_zero: float
    kl: float
    top1: float

    @property
    def ce_score(self) -> float:
        """(ce_zero − ce_replaced) / (ce_zero − ce_model): 1 is the model as it is, 0 no better than zeros."""
        lost = self.ce_zero - self.ce_model
        return (self.ce_zero - self.ce_replaced) / lost if lost else math.nan


@dataclass(frozen=True)
class EvaluationReport:
    """How good a dictionary is.

    Attributes:
        model_name: The model.
        dictionary_name: The dictionary.
        reads: The site that it reads.
        writes: The site that it writes, which is replaced.
        cross_layer: Whether features write to later layers too.
        corpus: The names of the texts.
        context_length: The most tokens of a context, `<bos>` included.
        tokens: The number of tokens that `l0`, `fvu`, `dead` and `frequent` are taken over; excluded first positions are
            not counted.
        predictions: The number of those whose next token is in the context, which losses are taken over.
        layer_tokens: The number of tokens of the contexts that `ce_delta` is measured on, 0 if it was not.
        layer_predictions: The number of those whose next token is in the context.
        layers: Each layer, ascending.
        all: All layers at once.
    """

    model_name: str
    dictionary_name: str
    reads: str
    writes: str
    cross_layer: bool
    corpus: Sequence[str]
    context_length: int
    tokens: int
    predictions: int
    layer_tokens: int
    layer_predictions: int
    layers: Sequence[LayerQuality]
    all: AllQuality

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it; what is not a number is None."""
        return _plain(
            {
                "tokens": self.tokens,
                "layers": [
                    {
                        "layer": layer.layer,
                        "l0": layer.l0,
                        "fvu": layer.fvu,
                        "dead": layer.dead,
                        "frequent": layer.frequent,
                        "ce_delta": layer.ce_delta,
                        "fvu_weighted": layer.fvu_weighted,
                        "ce_delta_error": layer.ce_delta_error,
                        "l0_config": layer.l0_config,
                        "features": layer.n_features,
                    }
                    for layer in self.layers
                ],
                "all": {
                    "ce_model": self.all.ce_model,
                    "ce_replaced": self.all.ce_replaced,
                    "ce_zero": self.all.ce_zero,
                    "ce_score": self.all.ce_score,
                    "kl": self.all.kl,
                    "top1": self.all.top1,
                },
                "predictions": self.predictions,
                "layer_tokens": self.layer_tokens,
                "layer_predictions": self.layer_predictions,
                "context_length": self.context_length,
                "corpus": list(self.corpus),
                "model": self.model_name,
                "dictionary": self.dictionary_name,
                "reads": self.reads,
                "writes": self.writes,
                "cross_layer": self.cross_layer,
            }
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON.

        Args:
            path: The file, which is written whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
