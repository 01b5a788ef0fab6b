"""The progress bar: there when asked, silent otherwise."""

from __future__ import annotations

from crosstrace.tracer import progress
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
    with corpus_progress(200, show=True) as bar:
        bar.reading(50, 1000)
        bar.reading(100, 2000)
    shown = capsys.readouterr().err
    assert "reading the corpus" in shown
    assert "50%" in shown
    assert "2,000 tokens, " in shown
    assert "tokens/s" in shown


def test_then_by_features(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with corpus_progress(200, show=True) as bar:
        bar.reading(200, 1000)
        bar.begin_features(1200)
        bar.features(300)
    shown = capsys.readouterr().err
    assert "promoted tokens" in shown
    assert "25%" in shown
    assert "of 1,200 features" in shown


def test_a_corpus_is_silent_when_asked(capsys):
    with corpus_progress(200, show=False) as bar:
        bar.reading(200, 1000)
        bar.begin_features(3)
        bar.features(3)
    assert capsys.readouterr().err == ""


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with corpus_progress(1000) as bar:
        bar.begin_reading(2000)
        for read, tokens, now in ((200, 4000, 101), (300, 6000, 120), (310, 6200, 121), (600, 12000, 150)):
            clock[0] = now
            bar.reading(read, tokens)
        bar.begin_features(1000)
        for now in (159, 210):
            clock[0] = now
            bar.features(250)
    assert capsys.readouterr().err.splitlines() == [
        "reading the corpus: 30%, 6,000 tokens, 200 tokens/s, 70 s left",
        "reading the corpus: 60%, 12,000 tokens, 200 tokens/s, 40 s left",
        "promoted tokens: 500 of 1,000 features, 60 s left",
    ]


def test_what_is_done_in_a_moment_is_silent_where_there_is_no_terminal(capsys):
    with corpus_progress(200) as bar:
        bar.reading(200, 1000)
        bar.begin_features(3)
        bar.features(3)
    assert capsys.readouterr().err == ""
