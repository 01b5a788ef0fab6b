"""The hub: loading, dry runs and refusals, against a server that answers as the hub does."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cases import load_case, write_circuit_tracer
from hub_server import HubServer, serving

from crosstrace.replacement_model import ReplacementModel, hub, open_transcoders
from crosstrace.replacement_model.dictionaries.readers import download_bytes
from crosstrace.replacement_model.dictionaries.readers.opening import local_place
from crosstrace.replacement_model.hub import errors_in_one_line
from crosstrace.tracer import trace
from crosstrace.tracer.attribution.plan import plan_trace

CASE = load_case("clt_affine")
MODEL, CLT = "org/tiny", "org/scope/clt/width_1k"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub with a model and its transcoders, and an empty cache."""
    import huggingface_hub
    import transformers
    from huggingface_hub import constants

    scope, listed = tmp_path / "repositories" / "scope", tmp_path / "repositories" / "listed"
    shutil.copytree(CASE.transcoders, scope / "clt" / "width_1k")
    shutil.copytree(load_case("skip_transcoder").transcoders, scope / "transcoder_all")
    listed.mkdir()
    files = write_circuit_tracer(load_case("skip_transcoder"), tmp_path / "repositories" / "files")
    (listed / "all").mkdir()
    config = yaml.safe_load((files / "config.yaml").read_text())
    config["transcoders"] = [f"hf://org/files/layer_{layer}.safetensors" for layer in range(4)]
    (listed / "all" / "config.yaml").write_text(yaml.safe_dump(config))
    rooted, nested = tmp_path / "repositories" / "rooted", tmp_path / "repositories" / "nested"
    shutil.copytree(CASE.transcoders, rooted)
    (rooted / "other").mkdir()
    (rooted / "other" / "large.safetensors").write_bytes(bytes(1 << 20))
    shutil.copytree(files, nested)
    (nested / "encoders").mkdir()
    for path in nested.glob("layer_*.safetensors"):
        path.rename(nested / "encoders" / path.name)
    config["transcoders"] = [f"encoders/layer_{layer}.safetensors" for layer in range(4)]
    (nested / "config.yaml").write_text(yaml.safe_dump(config))
    repositories = {"org/tiny": CASE.model, "org/scope": scope, "org/listed": listed, "org/files": files}
    repositories |= {"org/rooted": rooted, "org/nested": nested, "org/families": scope / "transcoder_all"}
    gated = {"org/gated": CASE.model, "org/gated-scope": scope}
    with serving(HubServer(repositories | gated, frozenset(gated))) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants._HF_DEFAULT_ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # transformers keeps a client with the address of its making: the test before this one had another.
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield running


def test_model_and_transcoders_from_the_hub_give_the_same_graph(server):
    loaded = ReplacementModel.from_pretrained(MODEL, CLT, device="cpu")
    local = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders, device="cpu")
    assert loaded.transcoders.name == CLT
    edges = [trace(model, CASE.input_ids, max_feature_nodes=20).adjacency for model in (loaded, local)]
    assert torch.equal(*edges)


def test_what_is_in_the_cache_is_enough_offline(server, monkeypatch):
    from huggingface_hub import constants

    with pytest.raises(FileNotFoundError, match=r"^org/scope/clt/width_1k is not in the local cache$"):
        local_place(CLT)
    open_transcoders(CLT)
    assert next(local_place(CLT).glob("params_layer_0.safetensors")).is_file()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for check in (True, False):
        assert open_transcoders(CLT, check).n_layers == open_transcoders(CASE.transcoders).n_layers


@pytest.mark.parametrize("reference", [CLT, "org/scope/transcoder_all/width_1k_l0_medium_affine"])
def test_a_plan_fetches_headers_only(server, reference, tmp_path):
    planned = open_transcoders(reference, check=False)
    sizes = sum(file.stat().st_size for file in server.repositories["org/scope"].rglob("*.safetensors"))
    fetched = sum(count for name, count in server.sent.items() if name.endswith(".safetensors"))
    assert 0 < fetched < sizes
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    whole = open_transcoders(reference)
    for name in ("n_layers", "d_model", "n_features", "cross_layer", "l0"):
        assert getattr(planned, name) == getattr(whole, name), name
    assert planned.dtype() == whole.dtype()
    assert download_bytes(reference) == 0


@pytest.mark.parametrize("reference", ["org/rooted", "org/rooted@main", "org/files", "org/nested", "org/families"])
def test_files_at_the_root_of_a_repository(server, reference, tmp_path):
    """Those of Gemma Scope 2, of circuit-tracer, where its config lists a folder, and a family of folders."""
    folder = server.repositories[reference.partition("@")[0]]
    sizes = [path.stat().st_size for path in folder.rglob("*.safetensors") if path.name != "large.safetensors"]
    assert sum(sizes) <= download_bytes(reference) < sum(sizes) + 20_000
    planned = open_transcoders(reference, check=False)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    whole, local = open_transcoders(reference), open_transcoders(folder)
    assert planned.n_features == whole.n_features == local.n_features
    assert torch.equal(whole.decoder(0), local.decoder(0))
    assert not list((tmp_path / "cache").rglob("large.safetensors"))  # a file of another folder
    assert download_bytes(reference) == 0


def test_files_that_a_config_lists_count_as_download(server, tmp_path):
    sizes = sum(path.stat().st_size for path in server.repositories["org/files"].glob("*.safetensors"))
    assert download_bytes("org/listed/all") == pytest.approx(sizes, abs=2000)
    here = tmp_path / "here"
    shutil.copytree(server.repositories["org/listed"] / "all", here)
    assert download_bytes(here) == sizes
    open_transcoders(here)
    assert download_bytes(here) == 0


def test_a_plan_says_what_would_be_downloaded(server):
    expected = sum(file.stat().st_size for file in Path(CASE.transcoders).iterdir())
    assert download_bytes(CLT) == expected
    assert download_bytes(CASE.transcoders) == 0
    plan = plan_trace(MODEL, CLT, 6, device="cpu")
    assert plan.download_bytes >= expected
    assert [part.name for part in plan.parts] == [
        part.name for part in plan_trace(CASE.model, CASE.transcoders, 6, device="cpu").parts
    ]


def test_a_gated_model_says_what_to_do(server):
    with pytest.raises(OSError, match=r"^model org/gated: org/gated needs its licence accepted .*hf auth login\)$"):
        ReplacementModel.from_pretrained("org/gated", CASE.transcoders, device="cpu")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "org/gated-scope/clt/width_1k",
            r"^org/gated-scope/clt/width_1k: org/gated-scope needs its licence accepted on",
        ),
        (
            "org/scope/clt/width_9k",
            r"^org/scope/clt/width_9k: org/scope has no such folder; folders there with weights: clt/width_1k, "
            r"transcoder_all/layer_0_\S+, ",
        ),
        ("org/nothing", r"^org/nothing: org/nothing is not on the hub, or is private and needs a login"),
        (
            "org/scope",
            r"^org/scope: org/scope has no transcoders at its root; folders there with weights: clt/width_1k, ",
        ),
        ("org/nothing/clt", r"^org/nothing/clt: org/nothing is not on the hub, or is private and needs a login"),
        (f"{CLT}@v9", r"^org/scope/clt/width_1k@v9: org/scope has no revision 'v9'$"),
        ("org/sc--ope/clt", r"^org/sc--ope/clt: not a hub reference \(org/repo\[/sub/folder\]\[@revision\]\)"),
    ],
)
def test_refusals_are_one_line(server, reference, message):
    with pytest.raises((OSError, ValueError), match=message) as raised:
        open_transcoders(reference)
    assert "\n" not in str(raised.value)


def test_unknown_model_is_one_line(server):
    with pytest.raises(OSError, match=r"^model org/nothing: org/nothing is not on the hub, or is private") as raised:
        ReplacementModel.from_pretrained("org/nothing", CASE.transcoders, device="cpu")
    assert "\n" not in str(raised.value)


def test_hub_out_of_reach_is_one_line(server, monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"^org/scope/clt/width_1k: .*go online once, or give a local folder$"):
        open_transcoders(CLT)
    with pytest.raises(OSError, match=r"^org/scope/clt/width_1k: "):
        plan_trace(MODEL, CLT, 6, device="cpu")
    http = logging.getLogger("huggingface_hub.utils._http")
    with errors_in_one_line("model org/tiny", MODEL):
        http.warning("Retrying in 1s [Retry 1/5].")
        http.warning("Rate limited. Waiting 9s before retry [Retry 1/5].")
    assert [record.getMessage() for record in caplog.records] == ["Rate limited. Waiting 9s before retry [Retry 1/5]."]


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(server, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match=r"org/scope needs .* more on disk and .* has 10 B free; set HF_HOME") as raised:
        open_transcoders(CLT)
    assert str(raised.value).startswith(CLT)
    assert not server.sent


def test_files_that_a_config_lists_on_the_hub(server, tmp_path):
    planned = open_transcoders("org/listed/all", check=False)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    whole = open_transcoders("org/listed/all")
    assert planned.n_layers == whole.n_layers == 4
    assert planned.n_features == whole.n_features
