"""Corpora: every text once, contexts of a set length, and one line for anything that is not text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from crosstrace.replacement_model.texts import Corpus, Cursor, Texts, contexts


class Letters:
    """A tokenizer of one token a character; <bos> is 0."""

    bos_token_id: int | None = 0

    def __call__(self, texts: list[str], add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        assert not add_special_tokens
        return {"input_ids": [[0 if sign == "^" else ord(sign) for sign in text] for text in texts]}


def texts_of(path: Path, **settings: Any) -> list[str]:
    return [text for text, _ in Corpus([path], **settings).texts()]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cut(texts: list[str], length: int = 4, shortest: int = 2, start: Cursor | None = None) -> list[list[int]]:
    stream = contexts(Texts(texts), Letters(), length, shortest, start or Cursor())
    return [context.tokens for context in stream]


def test_lines_of_a_text_file(tmp_path):
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\n  \ntwo \xe2\x82\xac\nlast without end")
    corpus = Corpus([path])
    assert [text for text, _ in corpus.texts()] == ["one", "two €", "last without end"]
    assert (corpus.empty, corpus.broken) == (2, 0)
    assert corpus.left_out == [f"{path}, line 2: empty", f"{path}, line 3: empty"]
    assert [read for _, read in corpus.texts()][-1] == corpus.total == path.stat().st_size


def test_objects_of_a_jsonl_file(tmp_path):
    lines = [json.dumps({"text": text, "id": 1}) for text in ("a", "", "b\nc", "\ud800x")]
    assert texts_of(write(tmp_path, "a.jsonl", "\n".join(lines))) == ["a", "b\nc", "\ufffdx"]
    assert texts_of(write(tmp_path, "b.jsonl", '{"body": "x"}\n{"body": null}'), text_field="body") == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"content": "a", "id": 3}', r"line 1: no key 'text' \(keys: 'content', 'id'\); --text-field"),
        ("a.jsonl", '{"text": "a"}\n\n["text"]', "line 3: a list; expected a JSON object with the key 'text'"),
        ("a.jsonl", '{"text": 3}', "line 1: 'text' is a number; expected a string"),
        ("a.jsonl", '{"text": ["a"]}', "line 1: 'text' is a list; expected a string"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.txt", b"fine\nno\xff\n", r"a.txt, line 2: not UTF-8 \(byte 3 of the line\)"),
    ],
)
def test_a_broken_line_is_named_and_can_be_skipped(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=said) as problem:
        texts_of(path)
    assert "\n" not in str(problem.value)
    corpus = Corpus([path], skip_broken=True)
    kept = [text for text, _ in corpus.texts()]
    assert corpus.broken == 1
    assert len(kept) == ("\n" in (content if isinstance(content, str) else content.decode("latin-1")))


def test_files_that_cannot_be_a_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus .*no\.txt: no such file"):
        Corpus([tmp_path / "no.txt"])
    with pytest.raises(ValueError, match=r"unknown suffix '\.csv'; known are \.txt, \.jsonl, \.parquet"):
        Corpus([write(tmp_path, "a.csv", "a")])
    with pytest.raises(ValueError, match="no corpus is given"):
        Corpus([])


def test_columns_of_a_parquet_file(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "", "b"], "n": [1, 2, 3, 4]}), path)
    corpus = Corpus([path])
    assert [text for text, _ in corpus.texts()] == ["a", "b"]
    assert corpus.empty == 2
    with pytest.raises(ValueError, match=r"no column 'body' \(columns: 'text', 'n'\); --text-field names another"):
        texts_of(path, text_field="body")
    with pytest.raises(ValueError, match="row 1: 'n' is a number; expected a string"):
        texts_of(path, text_field="n")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        texts_of(write(tmp_path, "cut.parquet", path.read_bytes()[:50]))


def test_without_pyarrow_a_parquet_file_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pyarrow, which is not installed; pip install 'crosstrace\[parquet\]'"):
        Corpus([write(tmp_path, "a.parquet", "x")])


def test_texts_are_cut_and_every_piece_gets_bos():
    assert cut(["abcdefg", "x", "^yz", ""]) == [
        [0, *map(ord, "abc")],
        [0, *map(ord, "def")],
        [0, ord("g")],
        [0, ord("x")],
        [0, *map(ord, "yz")],  # its own <bos> is not doubled
    ]


def test_pieces_with_nothing_past_the_excluded_positions_are_left_out():
    assert cut(["abcdefg", "x"], length=5, shortest=3) == [[0, *map(ord, "abcd")], [0, *map(ord, "efg")]]


def test_a_tokenizer_without_bos(monkeypatch):
    monkeypatch.setattr(Letters, "bos_token_id", None)
    assert cut(["abcdef"]) == [[*map(ord, "abcd")], [*map(ord, "ef")]]


def test_a_corpus_goes_on_after_any_context():
    texts = ["abcdefg", " ", "hi", "jklmnopq"]
    everything = list(contexts(Texts(texts), Letters(), 4, 2, Cursor()))
    for i, context in enumerate(everything):
        assert cut(texts, start=context.after) == [later.tokens for later in everything[i + 1 :]]


def test_another_corpus_is_not_gone_on_with():
    texts = ["abc", "def", "ghi"]
    *_, last = contexts(Texts(texts[:2]), Letters(), 4, 2, Cursor())
    assert cut(texts, start=last.after) == [[0, *map(ord, "ghi")]]
    with pytest.raises(ValueError, match="not the one that was read before: its texts have changed"):
        cut(["abc", "dXf", "ghi"], start=last.after)
    with pytest.raises(ValueError, match="has only 1 texts; 2 of it were read before"):
        cut(["abc"], start=last.after)
