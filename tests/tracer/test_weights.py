"""A graph and a model meet: other weights are refused in one line, graphs from before fingerprints are taken with a note."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from cases import Case, load_case, rounded_copy
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from crosstrace.graphs import AttributionGraph, prune, read_state, write_html, write_json
from crosstrace.graphs.analysis.comparison import check_comparable
from crosstrace.graphs.cards.feature_cards import FeatureCards
from crosstrace.graphs.viewer_ids import node_ids
from crosstrace.replacement_model import Ablate, ReplacementModel
from crosstrace.tracer import build_cards, find_cards, trace, validate_graph
from crosstrace.tracer.attribution.checkpoint import TraceInterrupted
from crosstrace.tracer.attribution.row_store import RowStore
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.interventions.named_features import by_name
from crosstrace.tracer.weights import check_graph_weights


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case("clt_affine")


@pytest.fixture(scope="module")
def model(case: Case) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")


@pytest.fixture(scope="module")
def graph(case: Case, model: ReplacementModel) -> AttributionGraph:
    return trace(model, case.input_ids, progress=False)


@pytest.fixture(scope="module")
def other_decoders(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same transcoders but for what features write: the same features fire, and every edge is another."""
    folder = rounded_copy(case, tmp_path_factory.mktemp("other") / case.transcoders.name, torch.float32)
    for path in folder.glob("**/*.safetensors"):
        tensors = load_file(path)
        tensors["w_dec"] *= 1.5
        save_file(tensors, path)
    return folder


@pytest.fixture(scope="module")
def other(case: Case, other_decoders: Path) -> ReplacementModel:
    return ReplacementModel.from_pretrained(case.model, other_decoders, "cpu")


def without(graph: AttributionGraph, *names: str) -> AttributionGraph:
    """The graph as it was written before some of its fingerprints existed."""
    kept = {name: value for name, value in graph.settings["fingerprints"].items() if name not in names}
    return dataclasses.replace(graph, settings={**graph.settings, "fingerprints": kept})


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [str(argument) for argument in arguments])


def test_a_traced_graph_carries_fingerprints(graph: AttributionGraph, tmp_path: Path) -> None:
    assert set(graph.settings["fingerprints"]) == {"model", "model/2", "transcoders", "transcoders/2", "exact"}
    graph.save(tmp_path / "g.safetensors")
    again = AttributionGraph.load(tmp_path / "g.safetensors")
    assert again.settings["fingerprints"] == graph.settings["fingerprints"]


def test_other_transcoders_are_refused(graph: AttributionGraph, other: ReplacementModel) -> None:
    with pytest.raises(ValueError, match=r"traced with other transcoders: those of .*; give its own --transcoders$"):
        validate_graph(other, graph)


def test_another_model_is_refused(case: Case, graph: AttributionGraph) -> None:
    """One attention matrix of it was trained further; every norm is the same."""
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    model.model.get_parameter("model.layers.2.self_attn.q_proj.weight").mul_(1.02)
    with pytest.raises(ValueError, match=r"traced with other weights: those of .*, which have changed since; give"):
        validate_graph(model, graph)


def test_another_dtype_of_the_transcoders_is_refused(case: Case, graph: AttributionGraph, tmp_path: Path) -> None:
    folder = rounded_copy(case, tmp_path / "copy", torch.bfloat16)
    rounded = ReplacementModel.from_pretrained(case.model, folder, "cpu")
    with pytest.raises(ValueError, match=r"other transcoders|another dtype \(float32 model, float32 transcoders, now"):
        validate_graph(rounded, graph)


def test_graphs_from_before_are_taken_with_a_note(model: ReplacementModel, graph: AttributionGraph) -> None:
    for from_before in (
        without(graph, *graph.settings["fingerprints"]),
        without(graph, "model/2", "transcoders/2", "exact"),
        dataclasses.replace(graph, settings={}),
    ):
        notes: list[str] = []
        check_graph_weights(model, from_before, notes.append)
        assert len(notes) == 1
        assert "the graph is from before fingerprints saw all weights" in notes[0]
    notes = []
    check_graph_weights(model, graph, notes.append)
    assert notes == []
    assert validate_graph(model, dataclasses.replace(graph, settings={}), 3, 3).direct.relative_error < 1e-4


def test_what_the_first_fingerprints_tell_is_still_told(case: Case, graph: AttributionGraph) -> None:
    """They see norms and biases."""
    model = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    model.model.get_parameter("model.norm.weight").add_(1)
    with pytest.raises(ValueError, match="traced with other weights"):
        check_graph_weights(model, without(graph, "model/2", "transcoders/2", "exact"))


def test_validate_fails_where_direct_effects_are_wrong(
    case: Case, graph: AttributionGraph, other_decoders: Path, tmp_path: Path
) -> None:
    """A graph from before, whose features are those of other decoders: the report is written and the exit code is 1."""
    path, report = tmp_path / "g.safetensors", tmp_path / "r.json"
    without(graph, "model/2", "transcoders/2", "exact").save(path)
    arguments = ["validate", path, "--model", case.model, "--device", "cpu", "--sources", 40, "--features", 4]
    result = run(*arguments, "--transcoders", other_decoders, "-o", report)
    assert result.exit_code == 1, result.output
    note, error = result.stderr.strip().splitlines()
    assert note.startswith("note: the graph is from before")
    assert error.startswith("error: direct effects are off by 0.")
    assert "(expected at most 0.001)" in error
    assert json.loads(report.read_text())["direct"]["relative_error"] > 0.1
    assert f"wrote {report}" in result.output
    graph.save(path)
    result = run(*arguments, "--transcoders", case.transcoders)
    assert (result.exit_code, result.stderr) == (0, "")
    result = run(*arguments, "--transcoders", other_decoders)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def saved_groups(graph: AttributionGraph, path: Path, **metadata: object) -> Path:
    """What the page saves."""
    ids = node_ids(graph)
    content = {"metadata": metadata, "qParams": {"pinnedIds": [], "supernodes": [["two", ids[0], ids[1]]]}}
    path.write_text(json.dumps(content))
    return path


def test_groups_of_another_graph_are_refused(
    model: ReplacementModel, graph: AttributionGraph, other: ReplacementModel, tmp_path: Path
) -> None:
    fingerprints = graph.settings["fingerprints"]
    groups = saved_groups(graph, tmp_path / "s.json", transcoders="mine", model="m", fingerprints=fingerprints)
    notes: list[str] = []
    assert len(by_name([Ablate("two")], model, groups, notes.append)[0].where.members) == 2  # type: ignore[union-attr]
    assert notes == []
    with pytest.raises(ValueError, match=r"the graph of .*s\.json was traced with other transcoders: those of mine"):
        by_name([Ablate("two")], other, groups)
    assert read_state(groups, graph).supernodes == [("two", [0, 1])]
    with pytest.raises(ValueError, match=r"s\.json: was saved for a graph of other transcoders: mine"):
        read_state(groups, trace(other, graph.tokens, progress=False))
    by_name([Ablate("two")], other, saved_groups(graph, tmp_path / "old.json"), notes.append)
    assert "old.json is from before" in notes[0]


def test_groups_in_another_dtype_are_the_same_features(case: Case, graph: AttributionGraph, tmp_path: Path) -> None:
    groups = saved_groups(graph, tmp_path / "s.json", fingerprints=graph.settings["fingerprints"])
    narrow = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu", torch.bfloat16)
    assert by_name([Ablate("two")], narrow, groups)


def test_a_graph_s_json_and_its_page_carry_fingerprints(
    graph: AttributionGraph, other: ReplacementModel, tmp_path: Path
) -> None:
    pruned = prune(graph)
    ids = node_ids(pruned)
    write_json(pruned, tmp_path / "g.json")
    content = json.loads((tmp_path / "g.json").read_text())
    content["qParams"]["supernodes"] = [["two", *(ids[int(node)] for node in pruned.kept_nodes()[:2])]]
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="traced with other transcoders"):
        by_name([Ablate("two")], other, tmp_path / "g.json")
    write_html(pruned, tmp_path / "g.html")
    assert graph.settings["fingerprints"]["transcoders/2"] in (tmp_path / "g.html").read_text()


def test_a_trace_is_not_resumed_with_other_decoders(
    case: Case, model: ReplacementModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where errors, which the checkpoint looks at too, happen to be as large."""
    path, add = tmp_path / "rows", RowStore.add
    with monkeypatch.context() as patched:
        computed: list[int] = []

        def interrupted(self: RowStore, *arguments: object) -> None:
            if computed:
                raise KeyboardInterrupt
            computed.append(1)
            add(self, *arguments)  # type: ignore[arg-type]

        patched.setattr(RowStore, "add", interrupted)
        with pytest.raises(TraceInterrupted):
            trace(model, case.input_ids, batch_size=9, checkpoint=path, progress=False)
    changed = ReplacementModel.from_pretrained(case.model, case.transcoders, "cpu")
    changed.model.get_parameter("model.layers.3.mlp.gate_proj.weight")[0, 0] *= 1 + 1e-4
    with pytest.raises(
        ValueError, match="cannot be resumed: it was started with different weights, by their fingerprints;"
    ):
        trace(changed, case.input_ids, checkpoint=path, resume=True, progress=False)
    assert trace(model, case.input_ids, checkpoint=path, resume=True, progress=False).n > 0


def test_a_local_replacement_model_runs_in_its_own_model(
    case: Case, model: ReplacementModel, other: ReplacementModel
) -> None:
    local = other.local(case.input_ids)
    for run_it in (lambda: model.intervene(local, []), lambda: model.generate(local, max_new_tokens=1)):
        with pytest.raises(ValueError, match="was not made by this replacement model"):
            run_it()
    with pytest.raises(ValueError, match="excludes the first 1 positions and the model that runs it 3"):
        model.excluding(3).intervene(model.local(case.input_ids), [])
    assert model.excluding(1).intervene(model.local(case.input_ids), []).became_active == 0


def test_graphs_of_other_weights_are_not_compared(graph: AttributionGraph, other: ReplacementModel) -> None:
    """Under the same names, as after training on."""
    theirs = dataclasses.replace(trace(other, graph.tokens, progress=False), transcoders_name=graph.transcoders_name)
    with pytest.raises(ValueError, match=r"cannot be compared: transcoders '.*' had other weights in the first"):
        check_comparable(graph, theirs)
    check_comparable(graph, without(graph, *graph.settings["fingerprints"]))


def test_cards_of_other_decoders_are_not_used(
    case: Case, model: ReplacementModel, other: ReplacementModel, graph: AttributionGraph, tmp_path: Path
) -> None:
    cards = build_cards(model, ["w1 w2 w3 w4", "w5 w6 w7"], tmp_path / "cards.safetensors", progress=False)
    theirs = trace(other, case.input_ids, progress=False)
    assert cards.belongs_to(graph.model_name, graph.transcoders_name, graph.settings["fingerprints"]) == ""
    assert "other transcoders" in cards.belongs_to(
        theirs.model_name, theirs.transcoders_name, theirs.settings["fingerprints"]
    )
    with pytest.raises(ValueError, match="other transcoders"):
        find_cards(
            theirs.model_name,
            theirs.transcoders_name,
            theirs.settings["fingerprints"],
            given=tmp_path / "cards.safetensors",
        )
    # A file from before.
    cards.fingerprints = {name: cards.fingerprints[name] for name in ("model", "transcoders")}
    assert isinstance(cards, FeatureCards)
    assert cards.belongs_to("any", "names", graph.settings["fingerprints"]) == ""
