"""Name every feature of the demo by what it fires on and what it promotes, by one stated rule.

Over every sentence of the corpus, a feature's activation mass is summed by word, by the setting of that word, and by
the place (state or country) the sentence is about. Of these rules the first that applies gives the name:

1. 80 % of the mass on one city's or capital's own token: that token, with its place ("Dallas (Texas)").
2. 80 % of the mass in sentences about one place: the place ("Texas"). If it mostly fires after the place was named, on
   words that carry no name themselves, and the name it promotes most belongs to that place: "say Austin (Texas)".
3. 80 % of the mass in sentences about at most three places: their names.
4. 80 % of the mass on one word, half of it or more in one setting: the setting, which is the two words that end there
   near the beginning of a sentence and its opening further on ("The capital … is"; X is any name).
5. Otherwise the two words it fires on most, or the one word if that has 80 % of the mass.

Letters: L layers, N positions past <bos> over all sentences, F features of a layer, D d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from crosstrace.replacement_model import ReplacementModel, direct_logits
from crosstrace.replacement_model.demo import Facts
from crosstrace.replacement_model.demo.corpus import Sentence
from demo_training.activations import Activations
from demo_training.quality import Firings

SHARE = 0.8
WORDS = 6
LENGTH = 30
FORMAT = "crosstrace-labels/1"


@dataclass(frozen=True)
class Vocabulary:
    """What is known of every token: its word, and the place it names or lies in ("" for function words)."""

    words: list[str]
    place_of: dict[str, str]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast, facts: Facts) -> "Vocabulary":
        place_of: dict[str, str] = {}
        for state in facts.states:
            for name in (state.name, state.abbreviation, state.capital, *state.cities):
                place_of[name] = state.name
        for country in facts.countries:
            for name in (country.name, country.capital, *country.cities):
                place_of[name] = country.name
        return Vocabulary([str(tokenizer.convert_ids_to_tokens(i)) for i in range(len(tokenizer))], place_of)


def promoted(model: ReplacementModel, layer: int, vocabulary: Vocabulary) -> list[list[str]]:
    """For each feature of a layer the tokens whose direct logits its decoder raises most, and 0.3 times as much."""
    features = torch.arange(len(model.transcoders.encoder(layer).b_enc_f))
    top = direct_logits(model, layer, features, WORDS)
    return [
        [vocabulary.words[token] for token, logit in zip(tokens, values, strict=True) if logit > 0.3 * values[0]]
        for tokens, values in zip(top.promoted.tolist(), top.raised.tolist(), strict=True)
    ]


def _leading(mass: Tensor) -> tuple[list[int], list[float]]:
    """Indices by falling share of the mass, and the shares."""
    order = mass.argsort(descending=True, stable=True)
    return order.tolist(), (mass[order] / mass.sum()).tolist()


def label(
    by_word: Tensor,
    by_place: Tensor,
    settings: dict[str, float],
    promotes: Sequence[str],
    places: Sequence[str],
    v: Vocabulary,
) -> str:
    """The name of one feature; the rules stand at the top of the file."""
    words, word_shares = _leading(by_word)
    top_places, place_shares = _leading(by_place)
    word, place = v.words[words[0]], places[top_places[0]]
    if word_shares[0] >= SHARE and v.place_of.get(word, word) != word:
        return f"{word} ({v.place_of[word]})"
    if place_shares[0] >= SHARE:
        unnamed = sum(share for i, share in zip(words, word_shares, strict=True) if v.words[i] not in v.place_of)
        if unnamed >= SHARE and promotes and v.place_of.get(promotes[0]) == place and promotes[0] != place:
            return f"say {promotes[0]} ({place})"
        return place
    for count in (2, 3):
        if sum(place_shares[:count]) >= SHARE:
            return _joined([places[i] for i in top_places[:count]])
    if word_shares[0] >= SHARE:
        setting = max(settings, key=lambda key: settings[key])
        return setting if settings[setting] >= 0.5 * sum(settings.values()) else word
    return _joined([v.words[i] for i in words[:2]])


def _joined(names: list[str]) -> str:
    """The names with commas, as many as stay readable in a graph's node."""
    while len(", ".join(names)) > LENGTH and len(names) > 1:
        names = [*names[:-1], "…"] if names[-1] != "…" else [*names[:-2], "…"]
    return ", ".join(names)


def _contexts(activations: Activations, v: Vocabulary) -> tuple[list[str], list[str]]:
    """For every row what a reader would say it stands at, and its setting.

    The first is "Dallas", "Dallas … is", or "of" where no name came before. The setting is "X is", "capital of" and the
    like up to the third word, "The capital … is" after it.
    """
    standing: list[str] = []
    setting: list[str] = []
    sentence: list[str] = []
    name = ""
    for token, position in zip(activations.token.tolist(), activations.position.tolist(), strict=True):
        if position == 1:
            sentence, name = [], ""
        word = v.words[token]
        name = word if word in v.place_of else name
        standing.append(word if word == name or not name else f"{name} … {word}")
        sentence.append("X" if word in v.place_of else word)
        setting.append(" ".join(sentence[-2:] if position <= 3 else [*sentence[:2], "…", sentence[-1]]))
    return standing, setting


def _numbered(names: list[str]) -> tuple[Tensor, list[str]]:
    """The number of every name, and the distinct names in order of those numbers."""
    distinct = list(dict.fromkeys(names))
    number = {name: i for i, name in enumerate(distinct)}
    return torch.tensor([number[name] for name in names]), distinct


def make_labels(
    model: ReplacementModel,
    found: Sequence[Firings],
    activations: Activations,
    sentences: Sequence[Sentence],
    tokenizer: PreTrainedTokenizerFast,
    facts: Facts,
) -> dict:
    """The content of `labels.json` for every feature that fires anywhere in the corpus."""
    v = Vocabulary.of(tokenizer, facts)
    places = [place.name for place in facts.places]
    place_of = torch.tensor([places.index(s.place) for s in sentences])[activations.sentence]
    token = activations.token
    (standing_of, standings), (setting_of, settings) = map(_numbered, _contexts(activations, v))
    layers = []
    for layer, firing in enumerate(found):
        by_word, by_place = firing.mass(token, len(v.words)), firing.mass(place_of, len(places))
        by_standing = firing.mass(standing_of, len(standings))
        by_setting = firing.mass(setting_of, len(settings))
        promotes = promoted(model, layer, v)
        entries = {}
        for feature in by_word.sum(1).nonzero().flatten().tolist():
            fires = by_standing[feature].argsort(descending=True, stable=True)[:WORDS].tolist()
            in_setting = dict(zip(settings, by_setting[feature].tolist(), strict=True))
            entries[str(feature)] = {
                "label": label(by_word[feature], by_place[feature], in_setting, promotes[feature], places, v),
                "fires_on": [standings[i] for i in fires if by_standing[feature, i] > 0],
                "promotes": promotes[feature],
            }
        layers.append(entries)
    return {"format": FORMAT, "layers": layers}
