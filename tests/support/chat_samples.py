"""A tiny model with a chat template that does what Gemma's does: alternating turns, a system prompt in the first, trimming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cases import load_case
from small_tokenizer import write_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ first if loop.first else '' }}{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def write_chat_model(folder: Path, template: str | None = TEMPLATE) -> tuple[Path, Path]:
    """Write a tiny model; return the folders of the model and of its transcoders."""
    case = load_case("clt_affine")
    copy = Path(shutil.copytree(case.model, folder / "model"))
    write_tokenizer(copy)
    if template is not None:
        path = copy / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return copy, Path(case.transcoders)
