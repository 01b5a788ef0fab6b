"""`crosstrace intervene` and `crosstrace validate`: what they print and write, and one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases import load_case
from graph_samples import random_graph
from typer.testing import CliRunner, Result

from crosstrace.graphs import AttributionGraph
from crosstrace.graphs.numbers import probability, signed
from crosstrace.replacement_model import FeatureAt, ReplacementModel, Scale, Set, SwapIn
from crosstrace.replacement_model.demo import MODEL_NAME, TRANSCODERS_NAME
from crosstrace.tracer import before_and_after, parse_intervention
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.commands.model_choice import choice_of_graph

PROMPT = "w5 w66 w55 w60 w15"
CASE = load_case("clt_affine")
CHOSEN = ["--model", str(CASE.model), "--transcoders", str(CASE.transcoders), "--device", "cpu"]


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, list(arguments))


def error_line(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("verb", "text", "expected"),
    [
        ("set", "L3/417@7=0", Set("L3/417@7", 0.0)),
        ("scale", '"a = b"@3:=-2', Scale('"a = b"@3:', -2.0)),
        ("set", "say Austin=1e3", Set("say Austin", 1000.0)),
        ("swap-in", "L1/2@3=1 + 1 = 2", SwapIn("L1/2@3", "1 + 1 = 2")),
    ],
)
def test_interventions_as_written(verb: str, text: str, expected: object) -> None:
    assert parse_intervention(verb, text) == expected


def test_before_and_after_are_the_two_passes(tmp_path: Path) -> None:
    edits = ["--scale", "L1/5@2=-3", "--set", "L2/3=4", "--steer", "L1/9@-1=0.5", "--ablate", "L3/1@2:4"]
    result = run("intervene", PROMPT, *CHOSEN, *edits, "--top", "5", "--generate", "3", "-o", str(tmp_path / "o.json"))
    assert result.exit_code == 0, result.output
    for said in ("before", "after", "scale L1/5@2 by -3", "set L2/3 to 4", "add 0.5 to L1/9@-1", f"wrote {tmp_path}"):
        assert said in result.output
    report = json.loads((tmp_path / "o.json").read_text())
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders)
    local = model.local(PROMPT)
    interventions = [parse_intervention(*pair) for pair in (("scale", "L1/5@2=-3"), ("set", "L2/3=4"))]
    interventions += [parse_intervention("add", "L1/9@-1=0.5"), parse_intervention("ablate", "L3/1@2:4")]
    after = model.intervene(local, interventions).logits_v.softmax(-1)
    before = local.logits().softmax(-1)
    outcome = model.intervene(local, interventions)
    assert (report["became_active"], report["became_inactive"]) == (outcome.became_active, outcome.became_inactive)
    assert outcome.became_active + outcome.became_inactive > 0
    assert [row["token"] for row in report["before"]] == before.topk(5).indices.tolist()
    assert [row["token"] for row in report["after"]] == after.topk(5).indices.tolist()
    torch.testing.assert_close(
        torch.tensor([row["after"] for row in report["before"]]), after[before.topk(5).indices], rtol=1e-4, atol=1e-7
    )
    assert abs(after - before).max() > 1e-3
    assert len(report["generated_after"].split()) == 3


def test_labels_name_features() -> None:
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders)
    layer, position, feature = model.local(PROMPT).activations.indices[-1].tolist()
    model.transcoders.labels = {(layer, feature): "Texas"}
    by_label = before_and_after(model, PROMPT, [parse_intervention("ablate", f'"Texas"@{position}')])
    by_number = before_and_after(model, PROMPT, [parse_intervention("ablate", f"L{layer}/{feature}@{position}")])
    assert by_label.after == by_number.after
    assert by_label.after != by_label.before


def test_what_was_active_of_the_named_features_is_said() -> None:
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders)
    local = model.local(PROMPT)
    found = local.activations
    active = dict(zip(map(tuple, found.indices.tolist()), found.values.tolist(), strict=True))
    (layer, position, feature), value = next(iter(active.items()))
    silent = next(f for f in range(99) if not any((layer, p, f) in active for p in range(1, 6)))
    model.transcoders.labels = {(layer, feature): "Texas", (layer, silent): "Texas", (layer + 1, 0): "Utah"}
    wishes = [f"L{layer}/{feature}@{position}", f"L{layer}/{silent}", f'"Texas"@{position}']
    said = before_and_after(model, PROMPT, [parse_intervention("ablate", wish) for wish in wishes[:2]]).found
    assert said == [f'"Texas", {value:.3g} here', '"Texas", not active here']
    said = before_and_after(model, PROMPT, [parse_intervention("scale", f"{wishes[2]}=2")]).found
    assert said == [f"2 features, active here: {wishes[0]} {value:.3g}"]


def test_the_table_shows_the_fate_of_the_old_answer_in_80_columns() -> None:
    arguments = ["intervene", PROMPT, *CHOSEN, "--scale", "L1/5@2=-3", "--set", "L2/3=400", "--top", "1"]
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, arguments)
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders)
    done = before_and_after(model, PROMPT, [Scale("L1/5@2", -3.0), Set("L2/3", 400.0)], top=1)
    old, new = done.before[0], done.after[0]
    assert old.string != new.string
    assert result.output.count("Δ log p") == 3  # no column is cut off, and the legend
    (row,) = [line for line in result.output.splitlines() if line.strip().startswith(old.string.strip())]
    assert row.split() == [
        *(old.string.strip(), probability(old.before), probability(old.after), signed(old.log_probability_change), "│"),
        *(new.string.strip(), probability(new.before), probability(new.after), signed(new.log_probability_change)),
    ]


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (["--set", "L1/5@2=x"], "--set 'L1/5@2=x': 'x' is not a number"),
        (["--set", "L1/5@2"], "write FEATURE=VALUE"),
        (["--swap-in", "L1/5@2="], "write FEATURE=PROMPT"),
        (["--set", "L1/5@1:3:2=1"], "positions '1:3:2' cannot be read; write 7, -1, 2,5, 3:6 or 3:"),
        (["--ablate", "L-1/5"], "feature 'L-1/5' cannot be read; write L3/417 or L3/417@7"),
        (["--set", "L9/5@2=1"], "L9/5@2: the model has layers 0 to 3"),
        (["--set", "L1/5@0=1"], "the first position carries no features"),
        (["--set", "L1/5@9=1"], "position 9 is outside the prompt; positions 1 to 5 are valid"),
        (["--set", "L1/5@2=1", "--ablate", "L1/5@2"], "contradictory interventions on L1/5@2: set to 1, and set to 0"),
        (["--ablate", "Texas"], "these transcoders have no labels"),
        (["--ablate", "L1/5", "--freeze", "some"], "unknown freeze 'some'"),
        (["--ablate", "L1/5", "--errors", "none"], "unknown errors 'none'"),
        (["--ablate", "L1/5", "-o", "out.txt"], "written as .json"),
        (["--ablate", "L1/5", "-o", "no/such/out.json"], "does not exist"),
        (["--ablate", "L1/5", "--freeze", "direct", "--free-attention"], "attention frozen"),
    ],
)
def test_what_cannot_be_gets_one_line(edits: list[str], said: str) -> None:
    assert said in error_line("intervene", PROMPT, *CHOSEN, *edits)


def test_wrong_usage() -> None:
    assert run("intervene", PROMPT, *CHOSEN).exit_code == 2
    assert run("intervene", PROMPT, "--ablate", "L1/5", "--model", "m").exit_code == 2
    assert run("validate").exit_code == 2


def test_validate_prints_and_writes(tmp_path: Path) -> None:
    graph = str(tmp_path / "g.safetensors")
    assert run("trace", PROMPT, *CHOSEN, "-o", graph, "-q").exit_code == 0
    outputs = ["-o", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.png")]
    result = run("validate", graph, *CHOSEN, "--sources", "20", "--features", "10", *outputs)
    assert result.exit_code == 0, result.output
    for said in (
        "direct effects",
        "rank correlation",
        "replacement model",
        "keep only",
        "remove only",
        "Error norm by layer",
    ):
        assert said in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.safetensors", "r.json", "r.png"]
    assert json.loads((tmp_path / "r.json").read_text())["direct"]["relative_error"] < 1e-5


def test_validate_says_when_the_model_is_another(tmp_path: Path) -> None:
    graph = str(tmp_path / "g.safetensors")
    assert run("trace", PROMPT, *CHOSEN, "-o", graph, "-q").exit_code == 0
    other = load_case("skip_transcoder")
    line = error_line("validate", graph, "--model", str(other.model), "--transcoders", str(other.transcoders))
    assert "traced with other transcoders" in line
    assert "no such graph file" in error_line("validate", str(tmp_path / "none.safetensors"))


def test_of_what_is_swapped_in_it_says_what_is_active_there() -> None:
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders)
    source = "w7 w8 w9 w10 w11"
    active = model.local(source).activations
    (layer, position, feature), value = active.indices[0].tolist(), active.values[0].item()
    where = FeatureAt(layer, feature, position)
    for given in (source, model.tokenize(source).tolist(), model.tokenize(source), model.local(source)):
        (said,) = before_and_after(model, PROMPT, [SwapIn(where, given)]).found
        assert said.endswith(f"{value:.3g} there")  # after the feature's name, if it has one
    elsewhere = FeatureAt(layer, feature, 1 + position % 4)
    (said,) = before_and_after(model, PROMPT, [SwapIn(elsewhere, source, source_position=position)]).found
    assert said.endswith(f"{value:.3g} there")


def test_validate_takes_the_model_that_the_graph_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tmp_path / "g.safetensors"
    assert run("trace", PROMPT, *CHOSEN, "-q", "-o", str(graph)).exit_code == 0
    result = run("validate", str(graph), "--sources", "4", "--features", "2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "direct effects" in result.output
    traced = AttributionGraph.load(graph)
    for name in ("/gone/model", "model with spaces", "C:\\gone"):
        traced.model_name = name
        traced.save(tmp_path / "moved.safetensors")
        line = error_line("validate", str(tmp_path / "moved.safetensors"))
        assert line.startswith(f"the graph was traced in {name} with ")
        assert line.endswith(
            "neither a folder here nor a name on the hub: say where they are with --model and --transcoders"
        )


def test_a_choice_is_the_demo_only_for_graphs_of_the_demo() -> None:
    graph = random_graph(model_name="org/model", transcoders_name="org/repo/clt/width@main")
    chosen = choice_of_graph(graph, None, None, None, None)
    assert (chosen.model, chosen.transcoders) == ("org/model", "org/repo/clt/width@main")
    graph = random_graph(
        model_name=MODEL_NAME, transcoders_name=TRANSCODERS_NAME, settings={"weights_dtype": "float32"}
    )
    chosen = choice_of_graph(graph, None, None, None, None)
    assert (chosen.model, chosen.transcoders, chosen.dtype) == ("demo", None, "float32")
    chosen = choice_of_graph(graph, "a", "b", "cpu", "bfloat16")
    assert (chosen.model, chosen.transcoders, chosen.dtype) == ("a", "b", "bfloat16")


def test_first_positions_can_be_excluded_here_too() -> None:
    model = ReplacementModel.from_pretrained(CASE.model, CASE.transcoders, device="cpu")
    local = model.excluding(3).local(PROMPT)
    layer, position, feature = local.activations.indices[0].tolist()
    edits = [Set(FeatureAt(layer, feature, position), 0.0)]
    found = before_and_after(model, PROMPT, edits, excluded_first=3)
    expected = model.excluding(3).intervene(local, edits).logits_v.softmax(-1)
    assert found.after[0].after == pytest.approx(expected.max().item(), abs=1e-6)
    assert local.activations.indices[:, 1].min() >= 3
    first = FeatureAt(layer, feature, 1)
    with pytest.raises(ValueError, match="position"):
        before_and_after(model, PROMPT, [Set(first, 1.0)], excluded_first=3)
