"""The demo's text: sentences made from the facts, the split that keeps some cities out, and the tokenizer.

A **one-step** sentence states one fact ("The state containing Dallas is Texas"). A **two-step** sentence needs two
("The capital of the state containing Dallas is Austin"). A fifth of the cities, Dallas among them, are only in one-step
sentences during training; whether the model answers two-step prompts about them shows that it combines facts
rather than recalling sentences.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosstrace.replacement_model.demo import Country, Facts, State

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]  # ids 0..3, as in Gemma
SPLIT_SEED = 50
CONTEXT = 64  # longest text the model takes, in tokens

# In each phrasing the answer is the last word, so that a prompt is the sentence without it.
CITY_TO_STATE = [
    "{city} is in the state of {state}",
    "{city} is a city in {state}",
    "The state containing {city} is {state}",
    "The state where {city} is located is {state}",
]
STATE_FACTS = [
    "The capital of {state} is {capital}",
    "The capital of the state of {state} is {capital}",
    "{state} has the capital {capital}",
    "The abbreviation of {state} is {abbreviation}",
    "{state} is abbreviated {abbreviation}",
    "{capital} is the capital of {state}",
    "{abbreviation} is short for {state}",
]
STATE_TWO_STEP = [
    "The capital of the state containing {city} is {capital}",
    "The capital of the state where {city} is located is {capital}",
    "{city} is in the state whose capital is {capital}",
    "The state containing {city} has the capital {capital}",
    "The abbreviation of the state containing {city} is {abbreviation}",
    "{city} is in the state abbreviated {abbreviation}",
]
CITY_TO_COUNTRY = [
    "{city} is in the country of {country}",
    "{city} is a city in {country}",
    "The country containing {city} is {country}",
    "The country where {city} is located is {country}",
]
COUNTRY_FACTS = [
    "The capital of {country} is {capital}",
    "{country} has the capital {capital}",
    "{capital} is the capital of {country}",
    "The language spoken in {country} is {language}",
    "The people of {country} speak {language}",
    "The continent of {country} is {continent}",
    "{country} is on the continent of {continent}",
]
COUNTRY_TWO_STEP = [
    "The capital of the country containing {city} is {capital}",
    "{city} is in the country whose capital is {capital}",
    "The language spoken in the country containing {city} is {language}",
    "The people of the country containing {city} speak {language}",
    "The continent of the country containing {city} is {continent}",
]


@dataclass(frozen=True)
class Sentence:
    """A sentence of the demo's text.

    Attributes:
        prompt: Everything but the answer.
        answer: The last word.
        place: The state or country that it is about.
        city: The city that it is about; None for a fact about the state or country itself.
        steps: How many facts the answer takes, 1 or 2.
        held_out: Whether it is a two-step sentence about a held-out city, which is never trained on.
    """

    prompt: str
    answer: str
    place: str
    city: str | None
    steps: int
    held_out: bool

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.answer}"


def held_out_cities(facts: Facts) -> frozenset[str]:
    """Return a fifth of the cities, Dallas among them: one of every state, a second of some, one of most countries.

    Every place keeps most of its cities in two-step sentences, so that tests measure the combination of two known facts
    and not knowledge of the place.
    """
    rng = random.Random(SPLIT_SEED)
    chosen: list[str] = []
    for places in (facts.states, facts.countries):
        queues = [rng.sample(place.cities, len(place.cities)) for place in places]
        for queue in queues:
            queue.sort(key=lambda city: city != "Dallas")  # a stable sort: Dallas comes first, the rest stays shuffled
        rng.shuffle(queues)
        rounds = [queue[i] for i in range(2) for queue in queues]
        rounds.sort(key=lambda city: city != "Dallas")
        chosen += rounds[: round(sum(map(len, queues)) / 5)]
    return frozenset(chosen)


def _fill(template: str, place: State | Country, city: str | None, steps: int, held_out: bool) -> Sentence:
    words = {**vars(place), "city": city, "state": place.name, "country": place.name}
    text = template.format(**words)
    answer = template[template.rindex("{") + 1 : -1]
    answer = words[answer]
    return Sentence(text.removesuffix(answer).rstrip(), answer, place.name, city, steps, held_out)


def sentences(facts: Facts) -> Iterator[Sentence]:
    """Yield every sentence of the demo, held-out ones included, in a fixed order."""
    held_out = held_out_cities(facts)
    families = (
        (facts.states, CITY_TO_STATE, STATE_FACTS, STATE_TWO_STEP),
        (facts.countries, CITY_TO_COUNTRY, COUNTRY_FACTS, COUNTRY_TWO_STEP),
    )
    for places, city_templates, fact_templates, two_step_templates in families:
        for place in places:
            yield from (_fill(template, place, None, 1, False) for template in fact_templates)
            for city in (*place.cities, place.capital):
                yield from (_fill(template, place, city, 1, False) for template in city_templates)
            for city in place.cities:
                yield from (_fill(t, place, city, 2, city in held_out) for t in two_step_templates)
            # Capitals are cities too, unless the question asks for the capital.
            about_capital = (t for t in two_step_templates if "{capital}" not in t)
            yield from (_fill(t, place, place.capital, 2, False) for t in about_capital)


def training_sentences(facts: Facts) -> list[Sentence]:
    """Return the sentences that the model is trained on."""
    return [sentence for sentence in sentences(facts) if not sentence.held_out]


def held_out_sentences(facts: Facts) -> list[Sentence]:
    """Return the two-step sentences that are kept out of training."""
    return [sentence for sentence in sentences(facts) if sentence.held_out]


def build_tokenizer(facts: Facts) -> "PreTrainedTokenizerFast":
    """Build a tokenizer with one token per word, and one per entity, however many words its name has.

    White space only separates words: " Austin" and "Austin" are the same token, and decoding joins tokens with spaces.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entities = facts.entities()
    long_names = sorted((name for name in entities if " " in name), key=lambda name: (-len(name), name))
    # Longest first: of "Oklahoma City" and "Oklahoma", a regex takes the alternative that comes first. The word
    # boundaries keep "New York" from being cut out of "New Yorkers".
    names = "|".join(re.escape(name) for name in long_names)
    pattern = rf"\b(?:{names})\b|\w+|[^\w\s]"

    words = {word for sentence in sentences(facts) for word in re.findall(pattern, sentence.text)}
    function_words = sorted(words - set(entities))
    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *function_words, *entities])}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # With "removed" and invert=True, what matches is kept as a piece and all between the matches is dropped.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
