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
