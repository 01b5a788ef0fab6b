"""The chat demo's tokenizer: one token a word, and a chat template like Gemma's."""

import re
from typing import TYPE_CHECKING

from crosstrace.replacement_model.demo_chat import conversations as wordings
from crosstrace.replacement_model.demo_chat.world import load_people, load_places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]  # ids 0 to 3 as in Gemma
CONTEXT = 128  # longest conversation that the model takes, in tokens
# As Gemma's: a system message goes before the first question, and the assistant is called "model".
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set before = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set before = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ (before if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def names_of_places() -> list[str]:
    """Return every name of a place that is a single token, each once."""
    places = load_places()
    names: dict[str, None] = {}
    for state in places.states:
        names.update(dict.fromkeys([state.name, state.capital, *state.cities]))
    for country in places.countries:
        names.update(dict.fromkeys([country.name, country.capital]))
    return list(names)


def words() -> list[str]:
    """Return every word of the wordings that is not a name, in alphabetical order."""
    people = load_people()
    things = people.harmful | people.harmless
    texts = [text for value in vars(wordings).values() if isinstance(value, tuple) for text in value if " " in text]
    texts += [
        wordings.COMPLIANCE,
        wordings.JAILBREAK,
        wordings.BEGGING,
        wordings.OWNER,
        wordings.THINK,
        wordings.EXPLAIN,
    ]
    texts += ["The country capital is in {} . Answer :", *things, *things.values()]
    found = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w*\}", " ", text))}
    return sorted(found)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the tokenizer: a token for each word, each name however many words it has, and the line break.

    Other white space only separates words: decoding joins tokens with spaces.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entities = [*names_of_places(), *load_people().names]
    roles = ["\n", "user", "model"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *roles, *words(), *entities]))}
    # Longest first: of "Oklahoma City" and "Oklahoma", a regex takes the alternative that comes first.
    long_names = sorted((name for name in entities if " " in name), key=lambda name: (-len(name), name))
    pattern = rf"\b(?:{'|'.join(map(re.escape, long_names))})\b|\w+|[^\w\s]|\n"

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # With "removed" and invert=True, what matches is kept as a piece and all between the matches is dropped.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
