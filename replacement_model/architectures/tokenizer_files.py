"""Tokenizers as `transformers` makes them, from the files of a folder, in a third of the time.

`AutoTokenizer` reads a `tokenizer.json` several times over, in Python; for Gemma's 262,144 tokens that takes longer than
tracing a prompt. Here the `tokenizers` library reads it once, and `transformers` is given the result. That is done only
where it comes to the same; `AutoTokenizer` reads all others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crosstrace.replacement_model.architectures.weight_files import check_whole

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
# Files that `transformers` mixes into what tokenizer_config.json says, by rules that are not repeated here.
_MIXED_IN = ("special_tokens_map.json", "added_tokens.json", "additional_chat_templates")
# The post-processor of tokenizer.json says whether `<bos>` and `<eos>` are added, not these.
_SWITCHES = ("add_bos_token", "add_eos_token")
# What tokenizer_config.json may hold. Of a key that is not listed nobody knows here what it does.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEYS = frozenset(
    (
        *_NAMED,
        *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
        *_SWITCHES,
        *("backend", "chat_template", "clean_up_tokenization_spaces", "is_local"),
        *("legacy", "local_files_only", "model_max_length", "name_or_path", "padding_side", "processor_class"),
        *("sp_model_kwargs", "spaces_between_special_tokens", "tokenizer_class", "truncation_side"),
        *("use_default_system_prompt", "boi_token", "eoi_token", "image_token"),
    )
)
# The class in tokenizer_config.json, without "Fast", and what it fixes. `GemmaTokenizer` takes vocabulary and merges from the
# file and makes the rest of the pipeline itself: `_is_gemma` says whether the file's is the same.
_GEMMA = "GemmaTokenizer"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
    _GEMMA: {
        **{f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")},
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    },
}


def read_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model; None if its folder has none.

    Args:
        name: A folder, or `org/name` on the hub.

    Raises:
        OSError: The tokenizer cannot be read.
        ValueError: One of its files is damaged; it is named.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        return _auto(name)
    if not any((folder / file).exists() for file in _FILES[:2]):
        return None
    check_whole(folder / file for file in _FILES)
    try:
        return _from_its_file(folder) or _auto(str(folder))
    except Exception as error:  # tokenizers raises nothing narrower
        file = next(folder / file for file in _FILES if (folder / file).exists())
        lines = (line.strip() for line in str(error).splitlines() if line.strip())
        raise ValueError(
            f"{file}: the tokenizer cannot be read (damaged? fetch it again): {next(lines, type(error).__name__)}"
        ) from error


def _from_its_file(folder: Path) -> Any:
    """The tokenizer, unless something in its folder asks for `AutoTokenizer`."""
    import tokenizers

    if (config := _plain_config(folder)) is None:
        return None
    backend = tokenizers.Tokenizer.from_file(str(folder / _FILES[0]))
    if not _is_complete(backend, config) or (_class_of(config) == _GEMMA and not _is_gemma(backend)):
        return None
    return _wrapped(backend, config, folder)


def _auto(name: str) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(name)


def _plain_config(folder: Path) -> dict[str, Any] | None:
    """What tokenizer_config.json holds, where it is all that is needed beside `tokenizer.json`; otherwise None."""
    if not (folder / _FILES[0]).is_file() or any((folder / file).exists() for file in _MIXED_IN[2:]):
        return None
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or not _KEYS.issuperset(config) or _class_of(config) not in _DEFAULTS:
        return None
    mixed_in = "added_tokens_decoder" not in config and any((folder / file).exists() for file in _MIXED_IN)
    return None if mixed_in else config


def _class_of(config: dict[str, Any]) -> str:
    return str(config.get("tokenizer_class")).removesuffix("Fast")


def _is_complete(backend: Any, config: dict[str, Any]) -> bool:
    """Whether a tokenizer has all tokens that its config adds, as the config wants them."""
    from tokenizers import AddedToken

    own = backend.get_added_tokens_decoder()
    if "added_tokens_decoder" in config:
        given = {int(number): AddedToken(**token) for number, token in config["added_tokens_decoder"].items()}
        if given != own:
            return False
    extra = [config.get(key) or [] for key in ("additional_special_tokens", "extra_special_tokens")]
    more = [token for some in extra for token in (some.values() if isinstance(some, dict) else some)]
    more += [value for key, value in config.items() if key.endswith("_token") and key not in (*_NAMED, *_SWITCHES)]
    special = {token.content for token in own.values() if token.special}
    return all(_text(token) in special for token in more)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _is_gemma(backend: Any) -> bool:
    """Whether a tokenizer does what `GemmaTokenizer` would do with its vocabulary and merges."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    model = backend.model
    wanted = (
        normalizers.Replace(" ", "▁"),
        pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    return (
        isinstance(model, models.BPE)
        and (model.fuse_unk, model.byte_fallback, model.dropout, model.ignore_merges) == (True, True, None, False)
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
        and all(part is not None and str(part) == str(other) for part, other in zip(parts, wanted, strict=True))
    )


class _AsItIs:
    """What `transformers` copies and gets the tokenizer itself: copying one means to write and read all of it."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __deepcopy__(self, memo: Any) -> Any:
        return self._backend


def _wrapped(backend: Any, config: dict[str, Any], folder: Path) -> Any:
    """What `transformers` makes of a tokenizer that is in memory, with all that tokenizer_config.json says of it."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    settings = {key: _token(value) for key, value in config.items() if key not in ("tokenizer_class", *_SWITCHES)}
    settings = {**_DEFAULTS[_class_of(config)], **settings}
    if (template := folder / "chat_template.jinja").is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    specific = {key: settings.pop(key) for key in list(settings) if key.endswith("_token") and key not in _NAMED}
    if isinstance(settings.get("extra_special_tokens"), dict):
        specific |= settings.pop("extra_special_tokens")
    if specific:
        settings["model_specific_special_tokens"] = specific
    if "added_tokens_decoder" in settings:  # those of tokenizer.json are there already
        given = settings["added_tokens_decoder"].items()
        settings["added_tokens_decoder"] = {int(number): AddedToken(**token) for number, token in given}
    added = settings.get("added_tokens_decoder") or backend.get_added_tokens_decoder()
    by_text = {token.content: token for token in added.values()}
    settings |= {key: by_text.get(str(settings[key]), settings[key]) for key in _NAMED if settings.get(key) is not None}
    settings |= {"name_or_path": str(folder), "is_local": True}
    return PreTrainedTokenizerFast(tokenizer_object=_AsItIs(backend), **settings)


def _token(value: Any) -> Any:
    """A value of tokenizer_config.json with the tokens in it as such."""
    from tokenizers import AddedToken

    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return AddedToken(**{key: part for key, part in value.items() if key != "__type"})
    if isinstance(value, dict):
        return {key: _token(part) for key, part in value.items()}
    return [_token(part) for part in value] if isinstance(value, list) else value
