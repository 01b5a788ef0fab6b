"""Sets of labels: read, written without loss, imported, compared; shown with their scores wherever labels are shown."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from graph_samples import HOSTILE

from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.demo import DALLAS_PROMPT, LABELS_FILE, MODEL_DIR, TRANSCODERS_DIR
from crosstrace.replacement_model.dictionaries.base import read_labels
from crosstrace.replacement_model.interventions.references import bare_label, find_features
from crosstrace.tracer import trace
from crosstrace.tracer.labels.label_set import Label, label_differences, read_label_set, write_label_set

TESTED = Label("Texas", "some-model", 0.931, 0.9, 0.962, 0.5, "some-model")


def test_what_is_written_is_read_back(tmp_path):
    labels = {
        (0, 1): TESTED,
        (2, 3): Label("by a person"),
        **{(1, i): Label(text, "x") for i, text in enumerate(HOSTILE)},
    }
    assert write_label_set(tmp_path / "labels.json", labels, 4) == 0
    assert read_label_set(tmp_path) == labels
    assert len(json.loads((tmp_path / "labels.json").read_text())["layers"]) == 4


def test_readers_show_a_programs_label_with_its_score(tmp_path):
    labels = {
        (0, 1): TESTED,
        (0, 2): Label("Utah", "m"),
        (0, 3): Label("Ohio"),
        (0, 4): Label("~ of", "automatic", 0.5),
    }
    write_label_set(tmp_path / "labels.json", labels)
    shown = {(0, 1): "~ Texas 0.93", (0, 2): "~ Utah", (0, 3): "Ohio", (0, 4): "~ of 0.50"}
    assert read_labels(tmp_path) == shown
    assert {key: label.shown for key, label in labels.items()} == shown


def test_graphs_and_edits_know_them(tmp_path):
    folder = tmp_path / "clt"
    shutil.copytree(TRANSCODERS_DIR, folder)
    (folder / "labels.json").unlink()
    write_label_set(folder / "labels.json", {(0, 120): TESTED, (0, 468): Label("Texas", "m", 0.7)}, 6)
    model = ReplacementModel.from_pretrained(MODEL_DIR, folder, "cpu")
    names = {label for label in trace(model, DALLAS_PROMPT, max_feature_nodes=40).feature_labels if label}
    assert names == {"~ Texas 0.93", "~ Texas 0.70"}
    members = find_features("Texas", model.transcoders.labels).members
    assert [(member.layer, member.feature) for member in members] == [(0, 120), (0, 468)]
    assert len(find_features("~ Texas 0.93", model.transcoders.labels).members) == 1


@pytest.mark.parametrize(
    ("shown", "bare"),
    [
        ("~ Texas 0.93", "Texas"),
        ("~ Texas", "Texas"),
        ("Texas 0.93", "Texas 0.93"),
        ("~ version 2.0 1.00", "version 2.0"),
        ("~", "~"),
    ],
)
def test_a_bare_label_has_neither_mark_nor_score(shown, bare):
    assert bare_label(shown) == bare


def test_a_persons_label_is_never_overwritten_and_other_keys_stay(tmp_path):
    path = tmp_path / "labels.json"
    entry = {"label": "mine", "fires_on": ["a"]}
    made = {"label": "old", "source": "m", "score": 0.6, "note": "n"}
    path.write_text(json.dumps({"format": "crosstrace-labels/1", "layers": [{"1": entry, "2": made}], "about": "x"}))
    kept = write_label_set(path, {(0, 1): TESTED, (0, 2): Label("new", "m2"), (1, 0): Label("more", "m")})
    content = json.loads(path.read_text())
    assert kept == 1
    assert content["about"] == "x"
    assert content["layers"][0]["1"] == entry
    assert content["layers"][0]["2"] == {"label": "new", "source": "m2", "note": "n"}
    assert content["layers"][1]["0"]["label"] == "more"


def test_the_demos_labels_are_read():
    assert read_label_set(LABELS_FILE)[0, 120] == Label("Texas")


EXPORT = [
    {
        "modelId": "gemma-3-270m",
        "layer": "3-clt-16k",
        "index": "417",
        "description": " cities\nin Texas ",
        "explanationModelName": "gpt-x",
        "typeName": "oai_token-act-pair",
    },
    {"layer": 0, "index": 5, "description": "numbers", "scores": []},
    {"layer": "3-clt-16k", "index": 417, "description": "a second one"},
    {"layer": "12-res", "index": 1, "description": ""},
]


@pytest.mark.parametrize("name", ["batch-0.jsonl", "batch-0.jsonl.gz", "export.json"])
def test_neuronpedias_exports_are_read_by_layer_and_feature(tmp_path, name):
    text = json.dumps(EXPORT) if name.endswith(".json") else "\n".join(map(json.dumps, EXPORT)) + "\n\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert read_label_set(path) == {
        (3, 417): Label("cities in Texas", "neuronpedia: gpt-x"),
        (0, 5): Label("numbers", "neuronpedia"),
    }


def test_batches_in_a_folder_are_read_in_their_order(tmp_path):
    for number, said in ((10, "third"), (9, "second"), (0, "first")):
        folder = tmp_path / "3-clt" / "explanations"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"layer": "3-clt", "index": index, "description": said} for index in (1, number)]
        (folder / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "3-clt" / "activations").mkdir()
    (tmp_path / "3-clt" / "activations" / "batch-0.jsonl").write_text('{"layer": "3-clt", "index": 1, "values": [1.0]}')
    found = read_label_set(tmp_path)
    assert {key: label.text for key, label in found.items()} == {
        (3, 0): "first",
        (3, 1): "first",
        (3, 9): "second",
        (3, 10): "third",
    }
    with pytest.raises(ValueError, match=r"activations/batch-0\.jsonl, line 1: .*'description' is missing"):
        read_label_set(tmp_path / "3-clt" / "activations")


def test_a_folder_without_labels_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither labels\.json nor files of explanations"):
        read_label_set(tmp_path)


def test_an_array_is_no_file_that_labels_are_added_to(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([*EXPORT, {"layer": 1}]))
    with pytest.raises(ValueError, match=r"export\.json, entry 5: .*'index' is missing"):
        read_label_set(path)
    with pytest.raises(ValueError, match="not a label file"):
        write_label_set(path, {(0, 0): TESTED})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not an explanation of Neuronpedia"),
        ('{"index": 1, "description": "x"}', "line 2: .*'layer' is missing"),
        ('{"layer": "res", "index": 1, "description": "x"}', "layer 'res' does not begin with a number"),
        ('{"layer": -1, "index": 1, "description": "x"}', "layer -1 and index 1 are not those of a feature"),
        ('{"layer": 1, "index": 1, "description": 7}', "description is 7; expected a text"),
        ("[1]", "line 2: not an explanation"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text('{"layer": 1, "index": 1, "description": "x"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_label_set(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "[]",
        '{"format": "other/1", "layers": []}',
        '{"format": "crosstrace-labels/1", "layers": [{"a": {"label": "x"}}]}',
        '{"format": "crosstrace-labels/1", "layers": [{"1": {"label": 7}}]}',
        '{"format": "crosstrace-labels/1", "layers": [{"1": "x"}]}',
        '{"format": "crosstrace-labels/1", "layers": [{"1": {"label": "x", "score": "high"}}]}',
    ],
)
def test_what_is_not_a_label_file_is_refused_and_not_overwritten(tmp_path, text):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json: not a label file"):
        read_label_set(path)
    with pytest.raises(ValueError, match="not a label file"):
        write_label_set(path, {(0, 0): TESTED})
    assert path.read_text() == text


def test_differences_are_of_words_alone():
    first = {(0, 1): Label("Texas"), (0, 2): Label("Utah"), (0, 3): Label("a  b", "m", 0.9)}
    second = {(0, 1): Label("texas ", "m"), (0, 2): Label("Ohio"), (0, 3): Label("~ A b"), (1, 0): Label("new")}
    found = label_differences(first, second)
    assert [(one.feature, one.first, one.second) for one in found] == [
        ((0, 2), Label("Utah"), Label("Ohio")),
        ((1, 0), None, Label("new")),
    ]
    assert label_differences(first, first) == []
