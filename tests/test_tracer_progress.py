"""The progress bar: there when asked, silent otherwise."""

from __future__ import annotations

from crosstrace.tracer.progress import corpus_progress, row_progress


def test_shown_on_standard_error_when_asked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with row_progress(1000, show=True) as advance:
        advance(400)
        advance(600)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tracing" in err
    assert "1000/1000" in err


def test_silent_when_not_a_terminal_or_told_so(capsys):
    for show in (None, False):
        with row_progress(1000, show=show) as advance:
            advance(1000)
    assert capsys.readouterr() == ("", "")


def test_a_corpus_is_followed_by_bytes_and_tokens(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with corpus_progress(200, show=True) as at:
        at(50, 1000, "reading the corpus")
        at(100, 2000, "reading the corpus")
        at(200, 3000, "promoted tokens, layer 3")
    shown = capsys.readouterr().err
    assert "promoted tokens, layer 3" in shown
    assert "100%" in shown
    assert "3,000 tokens" in shown


def test_a_corpus_is_silent_when_asked(capsys):
    with corpus_progress(200, show=False) as at:
        at(200, 1000, "reading the corpus")
    assert capsys.readouterr().err == ""
