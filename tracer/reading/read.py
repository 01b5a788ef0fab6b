"""What a model holds at each token of a prompt, in the words of its dictionaries: the latents that are active there.

Nothing is replaced: one pass of the model as it is, and every dictionary encodes what it reads on the way (Bricken et al.
2023, "Towards Monosemanticity"; Lieberum et al. 2024, "Gemma Scope").

Letters: P positions, X those of them that count, D the width of a site, n active entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from crosstrace.graphs import FeatureCards
from crosstrace.graphs.text import marked
from crosstrace.replacement_model import LoadedModel, Prompt, ReplacementModel, SparseDictionary
from crosstrace.replacement_model.conversations import Conversation
from crosstrace.replacement_model.dictionaries.in_use import DictionaryInUse, Features
from crosstrace.replacement_model.dictionaries.transcoders import Transcoders
from crosstrace.replacement_model.dictionaries.use import in_use
from crosstrace.replacement_model.prompts import prompt_ids, token_strings
from crosstrace.replacement_model.readouts.feature_stream import stream_dictionaries
from crosstrace.tracer.cards.naming import FeatureNames
from crosstrace.tracer.defaults import READ_TOP
from crosstrace.tracer.evaluation.measured_l0 import MeasuredL0, far_l0

Dictionaries = SparseDictionary | DictionaryInUse | Sequence[SparseDictionary | DictionaryInUse]
Key = tuple[int, int, int]
"""(dictionary, layer, feature); the dictionary by its number in the reading."""


@dataclass(frozen=True)
class DictionaryRead:
    """A dictionary that was read with.

    Attributes:
        name: As messages name it.
        is_sae: Whether it is an SAE, rather than transcoders.
        site: The short name of the site that it reads, such as `resid_post`.
        layers: For each of its layers the L0 on this prompt, and that of the config.
    """

    name: str
    is_sae: bool
    site: str
    layers: Sequence[MeasuredL0]

    def latent(self, layer: int, feature: int) -> str:
        """Return how a latent is referred to: `resid_post/12/417`, or `L3/417` of transcoders."""
        return f"{self.site}/{layer}/{feature}" if self.is_sae else f"L{layer}/{feature}"


@dataclass(frozen=True)
class Latent:
    """A latent that is active at a position.

    Attributes:
        dictionary: Its dictionary's number in `Reading.dictionaries`.
        layer: Its layer.
        position: Where in the prompt.
        feature: Its number in the layer.
        activation: How strongly it is active.
        label: Its name: a given one, an automatic one from cards, a guess from what its decoder promotes, or "".
    """

    dictionary: int
    layer: int
    position: int
    feature: int
    activation: float
    label: str

    @property
    def key(self) -> Key:
        """The latent, wherever it is active."""
        return self.dictionary, self.layer, self.feature


@dataclass(frozen=True)
class Reading:
    """What dictionaries read in a prompt.

    Attributes:
        model_name: The model.
        prompt: The prompt as text; "" where it was given as token ids.
        token_ids: (P,) its tokens.
        tokens: (P,) their texts.
        excluded_first: How many first positions carry no latents.
        dictionaries: What it was read with.
        latents: At each position the strongest latents of every layer of every dictionary, by position, dictionary and
            layer, the strongest first.
        activations: For every latent of `latents`, [position, activation] wherever it is active.
        cards: The dictionaries' cards, where there are any.
        template: Positions of a chat template's tokens.
    """

    model_name: str
    prompt: str
    token_ids: Sequence[int]
    tokens: Sequence[str]
    excluded_first: int
    dictionaries: Sequence[DictionaryRead]
    latents: Sequence[Latent]
    activations: Mapping[Key, Sequence[tuple[int, float]]]
    cards: Mapping[int, FeatureCards] = field(default_factory=dict, repr=False)
    template: frozenset[int] = frozenset()

    @property
    def names(self) -> list[str]:
        """The tokens' texts, those of a chat template in marks: `‹user›`."""
        return [marked(token) if place in self.template else token for place, token in enumerate(self.tokens)]

    def without_template(self) -> Reading:
        """Return the reading without what is active at a chat template's tokens."""
        kept = {
            key: [(place, value) for place, value in places if place not in self.template]
            for key, places in self.activations.items()
        }
        latents = [latent for latent in self.latents if latent.position not in self.template]
        return replace(self, latents=latents, activations={key: places for key, places in kept.items() if places})

    def notes(self) -> list[str]:
        """Return one line for each dictionary whose L0 on this prompt is far from its config's: four times, or a quarter."""
        found = [(dictionary.name, far_l0(dictionary.layers)) for dictionary in self.dictionaries]
        return [f"{name}: {line}" for name, line in found if line]

    def name(self, key: Key) -> str:
        """Return how a latent is referred to: `resid_post/12/417`, or `L3/417` of transcoders."""
        dictionary, layer, feature = key
        return self.dictionaries[dictionary].latent(layer, feature)

    def strongest(self, rows: int) -> list[Key]:
        """Return the latents that a table of about that many rows shows: of every layer those with the largest activation.

        Layers share the rows, since activations of different layers have different scales. Each gets one at least.
        """
        peaks: dict[tuple[int, int], list[tuple[float, int]]] = {}
        for (dictionary, layer, feature), places in self.activations.items():
            peaks.setdefault((dictionary, layer), []).append((-max(value for _, value in places), feature))
        each = max(1, rows // max(1, len(peaks)))
        return [(*where, feature) for where in sorted(peaks) for _, feature in sorted(peaks[where])[:each]]


def read(
    model: LoadedModel,
    prompt: Prompt,
    saes: Dictionaries | None = None,
    *,
    top: int = READ_TOP,
    cards: Mapping[int, FeatureCards] | None = None,
) -> Reading:
    """Read a prompt with dictionaries: at each position the latents that are active, the strongest first.

    Args:
        model: The base model, or a replacement model.
        prompt: A text, which gets `<bos>` unless it starts with it, token ids, or a conversation (`model.conversation`).
        saes: One or several dictionaries, as `open_sae` and `open_transcoders` return them, or in use already; None for a
            replacement model's transcoders.
        top: How many latents to keep at each position, of every layer of every dictionary.
        cards: Feature cards of dictionaries, by their number in `saes`.

    Returns:
        The reading.

    Raises:
        ValueError: The prompt cannot be used, a dictionary does not fit the model, none is named, or `top` is less than 1.

    Example:
        >>> from crosstrace.replacement_model import ReplacementModel
        >>> reading = read(ReplacementModel.demo(), "Dallas is a city in")
        >>> reading.name(reading.latents[0].key)
        'L0/468'
    """
    if top < 1:
        raise ValueError(f"top is {top}; at least one latent is kept at a position")
    used = _used(model, saes)
    size = model.description
    tokens_p = prompt_ids(prompt, model.tokenizer, model.name, size.vocab_size, size.max_positions)
    excluded = size.excluded_first_of(tokens_p.tolist())
    if len(tokens_p) <= excluded:
        raise ValueError(f"the prompt has {len(tokens_p)} tokens, and the first {excluded} carry no latents")
    wanted_bw = torch.ones(1, len(tokens_p), dtype=torch.bool)
    wanted_bw[0, :excluded] = False
    found: dict[tuple[int, int], _Layer] = {}

    def take(number: int, layer: int, _input_xd: Tensor, features: Features) -> None:
        positions_n, features_n, values_n = (part.cpu() for part in features)
        found[number, layer] = _Layer(positions_n + excluded, features_n, values_n)

    stream_dictionaries(model, used, tokens_p[None].cpu(), wanted_bw, take)
    latents: list[Latent] = []
    activations: dict[Key, list[tuple[int, float]]] = {}
    for number, dictionary in enumerate(used):
        of_layers = {layer: found[number, layer].strongest(top) for layer in dictionary.layers}
        keys = {(layer, feature) for layer, rows in of_layers.items() for _, feature, _ in rows}
        names = FeatureNames(model, (cards or {}).get(number), dictionary).of(sorted(keys))
        for layer, rows in of_layers.items():
            latents += [Latent(number, layer, at, f, value, names[layer, f]) for at, f, value in rows]
            places = found[number, layer].places({feature for own, feature in keys if own == layer})
            activations |= {(number, layer, feature): at for feature, at in places.items()}
    latents.sort(key=lambda latent: (latent.position, latent.dictionary, latent.layer))  # stable: the strongest first
    n_counted = len(tokens_p) - excluded
    return Reading(
        model_name=model.name,
        prompt=prompt if isinstance(prompt, str) else "",
        template=frozenset(prompt.template) if isinstance(prompt, Conversation) else frozenset(),
        token_ids=tokens_p.tolist(),
        tokens=token_strings(tokens_p.tolist(), model.tokenizer),
        excluded_first=excluded,
        dictionaries=[
            DictionaryRead(
                dictionary.name,
                not isinstance(dictionary, Transcoders),
                dictionary.reads.short_name,
                [
                    MeasuredL0(
                        layer,
                        len(found[number, layer].values_n) / n_counted,
                        dictionary.reader.l0_by_layer.get(layer, dictionary.reader.l0),
                    )
                    for layer in dictionary.layers
                ],
            )
            for number, dictionary in enumerate(used)
        ],
        latents=latents,
        activations=activations,
        cards=dict(cards or {}),
    )


def _used(model: LoadedModel, saes: Dictionaries | None) -> list[DictionaryInUse]:
    if saes is None:
        if not isinstance(model, ReplacementModel):
            raise ValueError(f"no dictionary is named to read {model.name} with: give SAEs or transcoders")
        return [model.transcoders]
    given = [saes] if isinstance(saes, SparseDictionary | DictionaryInUse) else list(saes)
    if not given:
        raise ValueError(f"no dictionary is named to read {model.name} with: give SAEs or transcoders")
    used = [in_use(dictionary, model.device) for dictionary in given]
    for dictionary in used:
        dictionary.check_fits(model.description, model.name)
    return used


@dataclass(frozen=True)
class _Layer:
    """The active features of one layer, by (position, feature)."""

    positions_n: Tensor
    features_n: Tensor
    values_n: Tensor

    def strongest(self, top: int) -> list[tuple[int, int, float]]:
        """Return (position, feature, activation) of the strongest of each position, by position, the strongest first."""
        # Stable sorts, the last of them by position: what ties stays in the order of features.
        order = torch.argsort(self.values_n, descending=True, stable=True)
        order = order[torch.argsort(self.positions_n[order], stable=True)]
        taken: dict[int, int] = {}
        rows = []
        for at, feature, value in zip(
            self.positions_n[order].tolist(),
            self.features_n[order].tolist(),
            self.values_n[order].tolist(),
            strict=True,
        ):
            taken[at] = taken.get(at, 0) + 1
            if taken[at] <= top:
                rows.append((at, feature, value))
        return rows

    def places(self, features: set[int]) -> dict[int, list[tuple[int, float]]]:
        """Return (position, activation) of some features, wherever they are active."""
        kept = torch.isin(self.features_n, torch.tensor(sorted(features), dtype=torch.int64))
        found: dict[int, list[tuple[int, float]]] = {}
        for at, feature, value in zip(
            self.positions_n[kept].tolist(), self.features_n[kept].tolist(), self.values_n[kept].tolist(), strict=True
        ):
            found.setdefault(feature, []).append((at, value))
        return found
