"""Files of prompts."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer.sweeps.prompts import read_prompts


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffThe capital of Texas is\r\n\n  indented\nlast".encode())
    prompts = read_prompts(path)
    assert [prompt.prompt for prompt in prompts] == ["The capital of Texas is", "  indented", "last"]
    assert prompts[1].place == "a.txt, line 3"


def test_jsonl_and_parquet_hold_the_same(tmp_path):
    rows = [
        {"prompt": "The capital of Texas is", "targets": ['" Austin"'], "state": "Texas", "n": 3},
        {"prompt": "The capital of Ohio is", "targets": None, "state": "Ohio", "n": 4},
    ]
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), table)
    from_lines, from_table = read_prompts(lines), read_prompts(table)
    for one, other in zip(from_lines, from_table, strict=True):
        assert (one.prompt, one.targets, one.metadata) == (other.prompt, other.targets, other.metadata)
    assert from_lines[0].targets == ('" Austin"',)
    assert from_lines[1].metadata == {"state": "Ohio", "n": 4}


def test_conversations_are_written_by_the_template(tmp_path):
    messages = [{"role": "user", "content": "Where is Dallas ?"}]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": messages, "kind": "plain"}))
    (prompt,) = read_prompts(path)
    model = ReplacementModel.from_pretrained("demo-chat")
    assert list(prompt.of(model)) == list(model.conversation(messages))
    assert prompt.metadata == {"kind": "plain"}
    answered = prompt.of(model, generate=3)
    assert len(answered.answer_tokens) <= 3


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ('{"prompt": "x", "n": NaN}', "NaN is not a number that JSON knows"),
        ("[1]", 'expected an object with "prompt" or "messages"'),
        ('{"promt": "x"}', r'expected "prompt" or "messages", one of them \(keys: \'promt\'\)'),
        ('{"prompt": "x", "messages": []}', "one of them"),
        ('{"prompt": " "}', 'its "prompt" is empty'),
        ('{"prompt": 3}', 'its "prompt" is not text'),
        ('{"prompt": "x", "targets": [3]}', 'its "targets" are not a list of texts'),
        ('{"messages": [{"role": "boss", "content": "x"}]}', "has the role 'boss'"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_line_that_is_no_prompt_is_one_that_fails(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n' + line.encode("latin-1"))
    good, broken = read_prompts(path)
    assert not good.problem
    assert broken.problem.startswith("a.jsonl, line 2: ")
    with pytest.raises(ValueError, match=why):
        broken.of(None)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"prompts are read from \.txt, \.jsonl, \.parquet, not \.csv"):
        read_prompts(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(tmp_path / "b.txt")
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        read_prompts(tmp_path / "c.parquet")
