"""Cards lie beside the transcoders, wherever these are; looking for them asks nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from crosstrace.replacement_model import demo
from crosstrace.replacement_model.dictionaries.readers.card_places import cards_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one snapshot of org/repo, and no way to the hub."""
    repo = tmp_path / "hub" / "models--org--repo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    snapshot = repo / "snapshots" / ("a" * 40)
    (snapshot / "clt" / "width_1k").mkdir(parents=True)
    (snapshot / "clt" / "width_1k" / "config.json").write_text("{}")
    for layer in range(2):
        (snapshot / "all" / f"layer_{layer}_width_16k").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return snapshot


def test_a_folder(tmp_path: Path) -> None:
    assert cards_path(tmp_path) == cards_path(str(tmp_path)) == tmp_path / "cards.safetensors"


def test_a_family_of_folders(tmp_path: Path) -> None:
    for layer in range(2):
        (tmp_path / f"layer_{layer}_width_16k_l0_small").mkdir()
    expected = tmp_path / "width_16k_l0_small.cards.safetensors"
    assert cards_path(tmp_path / "width_16k_l0_small") == expected


def test_what_is_in_the_cache(cache: Path) -> None:
    assert cards_path("org/repo/clt/width_1k") == cache / "clt" / "width_1k" / "cards.safetensors"
    assert cards_path("org/repo/clt/width_1k@main") == cache / "clt" / "width_1k" / "cards.safetensors"
    assert cards_path("org/repo/all/width_16k") == cache / "all" / "width_16k.cards.safetensors"
    for missing in ("org/other/clt/width_1k", "org/repo/clt/width_1k@v2"):
        with pytest.raises(FileNotFoundError, match="is not in the local cache"):
            cards_path(missing)


def test_the_demo_under_the_name_that_its_graphs_carry() -> None:
    assert cards_path("crosstrace-demo-clt") == demo.CARDS_FILE
    assert cards_path(demo.TRANSCODERS_DIR) == demo.CARDS_FILE


@pytest.mark.parametrize("nowhere", ["/no/such/folder", "./no", "~/no-such-folder", "folder"])
def test_transcoders_that_are_not_here(nowhere: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        cards_path(nowhere)
