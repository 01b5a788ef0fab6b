"""The command line: what it writes and prints, and one line with the right exit code for everything that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from cases import load_case
from drawing import needs_graphviz, needs_pure
from small_tokenizer import write_tokenizer
from typer.testing import CliRunner, Result

from crosstrace.graphs import AttributionGraph
from crosstrace.tracer.commands import app as app_module
from crosstrace.tracer.commands.app import app

PROMPT = "w5 w66 w55 w60 w15"


@pytest.fixture(scope="module")
def chosen() -> list[str]:
    case = load_case("clt_affine")
    return ["--model", str(case.model), "--transcoders", str(case.transcoders), "--device", "cpu"]


@pytest.fixture(scope="module")
def raw(chosen, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "raw.safetensors"
    assert run("trace", PROMPT, *chosen, "-o", str(path), "-q").exit_code == 0
    return path


def run(*arguments: str, **settings) -> Result:
    return CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1"}).invoke(app, list(arguments), **settings)


def fails(*arguments: str, code: int = 1, **settings) -> str:
    """Runs, expects the exit code and a single line of error, returns it."""
    result = run(*arguments, **settings)
    assert result.exit_code == code, result.output
    if code == 1:
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert "Traceback" not in result.output
    return result.stderr


def test_trace_writes_every_format_and_prints_the_table(chosen, tmp_path):
    names = ("g.safetensors", "g.json", "g.dot", "g.svg", "g.png")
    outputs = [argument for name in names for argument in ("-o", str(tmp_path / name))]
    result = run("trace", PROMPT, *chosen, *outputs)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    graph = AttributionGraph.load(tmp_path / "g.safetensors")
    assert graph.prompt == f"<bos> {PROMPT}"
    nodes = json.loads((tmp_path / "g.json").read_text())["nodes"]
    assert len(nodes) == int(graph.node_mask.sum())
    for text in (PROMPT, "replacement score", "Strongest features", "Strongest paths", f"wrote {tmp_path / 'g.svg'}"):
        assert text in result.stdout
    assert result.stderr == ""


def test_quiet_prints_nothing(chosen, tmp_path):
    result = run("trace", PROMPT, *chosen, "-q", "-o", str(tmp_path / "g.json"))
    assert result.exit_code == 0
    assert result.output == ""


def test_prompt_from_standard_input_is_the_same_graph(chosen, raw, tmp_path):
    path = tmp_path / "stdin.safetensors"
    assert run("trace", "-", *chosen, "-q", "-o", str(path), input=PROMPT + "\n").exit_code == 0
    assert path.read_bytes() == raw.read_bytes()


def test_options_reach_the_trace(chosen, tmp_path):
    path = tmp_path / "g.safetensors"
    options = ("--target", '"w7" - "w9"', "--position", "3", "--max-feature-nodes", "9", "--node-threshold", "0.5")
    assert run("trace", PROMPT, *chosen, *options, "-q", "-o", str(path)).exit_code == 0
    graph = AttributionGraph.load(path)
    assert graph.logit_strings == ["w7 − w9"]
    assert graph.logit_positions.tolist() == [3]
    assert len(graph.selected_features) == 9
    assert graph.settings["pruning"]["node_threshold"] == 0.5


def test_prune_again_starts_from_the_whole_graph(raw, tmp_path):
    path = tmp_path / "again.safetensors"
    assert run("prune", str(raw), "-o", str(path), "--node-threshold", "0.5", "-q").exit_code == 0
    back = tmp_path / "back.safetensors"
    assert run("prune", str(path), "-o", str(back), "-q").exit_code == 0
    assert back.read_bytes() == raw.read_bytes()
    assert AttributionGraph.load(path).node_mask.sum() < AttributionGraph.load(raw).node_mask.sum()


def test_show_prints_a_graph(raw):
    result = run("show", str(raw), "--features", "3", "--paths", "2")
    assert result.exit_code == 0
    assert PROMPT in result.stdout
    assert "completeness score" in result.stdout


@pytest.mark.parametrize("verb", [(), ("trace",), ("prune",), ("show",)], ids=str)
def test_help(verb):
    result = run(*verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_version():
    assert run("--version").stdout.startswith("crosstrace 0.")


def test_wrong_usage_is_exit_code_2(chosen, raw):
    assert "--transcoders" in fails("trace", PROMPT, *chosen[:2], code=2)
    assert "PROMPT" in fails("trace", code=2)
    assert "-o FILE" in fails("prune", str(raw), code=2)
    assert "No such option" in fails("trace", PROMPT, "--nonsense", code=2)
    assert "--max-logits" in fails("trace", PROMPT, "--max-logits", "abc", code=2)


def bad_graph(tmp_path: Path, raw: Path) -> Path:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw.read_bytes()[:-100])
    return path


def test_what_goes_wrong_is_one_line(chosen, raw, tmp_path):
    case, out = load_case("clt_affine"), str(tmp_path / "g.json")
    trace = ("trace", PROMPT, *chosen)
    model = ("--model", str(case.model), "--transcoders", str(case.transcoders))
    assert "the prompt is empty" in fails("trace", " ", *chosen)
    assert "takes at most 512" in fails("trace", "w5 " * 600, *chosen)
    assert "unknown suffix '.gif'" in fails(*trace, "-o", "g.gif")
    assert f"output folder {tmp_path / 'no'} does not exist" in fails(*trace, "-o", str(tmp_path / "no" / "g.json"))
    assert "node_threshold" in fails(*trace, "-o", out, "--node-threshold", "1.5")
    assert "edge_threshold" in fails("prune", str(raw), "-o", out, "--edge-threshold", "nan")
    assert "not a single token" in fails(*trace, "--target", "w5 w6")
    assert "unknown dtype 'int8'" in fails(*trace, "--dtype", "int8")
    assert "device 'nonsense'" in fails("trace", PROMPT, *model, "--device", "nonsense")
    assert "no/where" in fails("trace", PROMPT, "--model", "/no/where", *chosen[2:])
    assert "/no/where" in fails("trace", PROMPT, *chosen[:2], "--transcoders", "/no/where")
    other = load_case("clt_plain_gqa").transcoders
    assert "do not fit" in fails("trace", PROMPT, *chosen[:2], "--transcoders", str(other))
    assert str(bad_graph(tmp_path, raw)) in fails("show", str(bad_graph(tmp_path, raw)))
    assert "nowhere.safetensors" in fails("show", str(tmp_path / "nowhere.safetensors"))
    assert "max_logits" in fails(*trace, "--max-logits", "0")
    assert sorted(os.listdir(tmp_path)) == ["bad.safetensors"]  # nothing half-written, nothing new


def test_debug_shows_the_stack(chosen):
    result = run("trace", " ", *chosen, "--debug")
    assert isinstance(result.exception, ValueError)


def test_missing_graphviz_is_said_after_the_other_files_are_written(chosen, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outputs = ("-o", str(tmp_path / "g.pdf"), "-o", str(tmp_path / "g.json"))
    error = run("trace", PROMPT, *chosen, *outputs, "-q")
    assert error.exit_code == 1
    assert "graphviz" in error.stderr.lower()
    assert sorted(os.listdir(tmp_path)) == ["g.dot", "g.json"]


def test_one_output_that_fails_keeps_no_other_from_being_written(chosen, raw, tmp_path, monkeypatch):
    """A program named dot that cannot draw: the picture between two other files fails."""
    program = tmp_path / "bin" / "dot"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho out of ink >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    for verb in (("trace", PROMPT, *chosen), ("prune", str(raw)), ("show", str(raw))):
        folder = tmp_path / verb[0]
        folder.mkdir()
        outputs = [str(folder / name) for name in ("a.safetensors", "b.pdf", "c.json")]
        result = run(*verb, *(part for path in outputs for part in ("-o", path)))
        assert result.exit_code == 1
        assert result.stderr == f"error: cannot draw {outputs[1]}: Graphviz failed: out of ink\n"
        assert sorted(os.listdir(folder)) == ["a.safetensors", "c.json"]
        assert "replacement score" in result.stdout
        for path in outputs:
            assert (f"wrote {path}" in result.stdout) == (path != outputs[1])


def test_cards_that_cannot_be_used_are_said_once_and_leave_the_graph(chosen, tmp_path):
    cards = tmp_path / "cards.safetensors"
    cards.write_bytes(b"not cards")
    outputs = [part for name in ("g.safetensors", "g.json", "g.dot") for part in ("-o", str(tmp_path / name))]
    assert str(cards) in fails("trace", PROMPT, *chosen, *outputs, "--cards", str(cards), "-q")
    assert sorted(os.listdir(tmp_path)) == ["cards.safetensors", "g.safetensors"]


def test_every_verb_is_a_file(tmp_path):
    files = {path.stem for path in Path(app_module.__file__).parent.glob("*.py")}
    assert set(app_module.VERBS) <= files
    listed = run("--help").stdout
    assert all(f" {verb} " in listed for verb in app_module.VERBS)


def test_imports_are_silent_and_help_needs_no_torch():
    code = (
        "import sys, logging, crosstrace.tracer.commands.app; assert 'torch' not in sys.modules; "
        "import crosstrace.kernels, crosstrace.replacement_model, crosstrace.graphs, crosstrace.tracer; "
        "from crosstrace.tracer import trace; from crosstrace.graphs import *; "
        "assert not logging.getLogger().handlers and not logging.getLogger('crosstrace').handlers"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_file_is_no_prompt(chosen, raw):
    for verb in (["trace"], ["intervene", "--ablate", "L0/1"]):
        said = fails(verb[0], str(raw), *verb[1:], *chosen)
        assert f"{raw} is a file; give the text of a prompt" in said


def test_unknown_words_are_named():
    result = run("trace", "the capital of the province containing Toronto is", "-q", "--device", "cpu")
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "note: not in the vocabulary, read as unknown: province (Providence?), Toronto; the demo knows"
    )
    assert "unknown: dallas (Dallas?);" in run("trace", "dallas is", "-q", "--device", "cpu").stderr
    assert "target 'Austn' is not in the vocabulary" in fails("trace", "Dallas is", "--target", "Austn")
    assert "; close: 'Austin'" in fails("trace", "Dallas is", "--target", "Austn")
    result = run("intervene", "Dallas is nowhere", "--ablate", "Texas", "-q", "--device", "cpu")
    assert "read as unknown: nowhere" in result.stderr


def test_the_demo_takes_the_options_of_other_models(tmp_path):
    path = tmp_path / "g.safetensors"
    assert run("trace", "Dallas is", "-q", "--dtype", "bfloat16", "--device", "cpu", "-o", str(path)).exit_code == 0
    assert AttributionGraph.load(path).settings["weights_dtype"] == "bfloat16"
    assert "memory budget 'lots' is not a size" in fails("trace", "Dallas is", "--memory-budget", "lots")


def test_prompts_that_are_no_text_get_one_line():
    """A terminal passes bytes that are not UTF-8 on as lone surrogates."""
    for more in ([], ["--explain"]):
        assert "the prompt is not valid text: character 7 is not valid UTF-8" in fails(
            "trace", "Dallas \udcff is", *more
        )
    assert "the prompt is not valid text" in fails("intervene", "Dallas \udcff is", "--ablate", "Texas")


def test_a_long_prompt_with_a_full_stop_is_no_file():
    assert (
        "read as unknown"
        in run("trace", "Столица штата т.е. города " + "Далласа " * 22, "-q", "--device", "cpu").stderr
    )


def test_standard_input_is_read_byte_for_byte(tmp_path):
    case = load_case("clt_affine")
    folder = shutil.copytree(case.model, tmp_path / "model")
    write_tokenizer(folder, chat=True)
    chosen = ("--model", str(folder), "--transcoders", str(case.transcoders), "-q")
    header = "<bos><start_of_turn>user\n"
    for text, end in (
        (header + "Austin\n", ["Austin", "\n"]),
        ("Austin\r\n", ["<0x0D>", "\n"]),
        ("Austin\n\n", ["\n\n"]),
    ):
        path = tmp_path / "g.safetensors"
        assert run("trace", "-", *chosen, "-o", str(path), input=text.encode()).exit_code == 0
        graph = AttributionGraph.load(path)
        assert graph.token_strings[-len(end) :] == end
        assert graph.settings["excluded_first"] == (4 if text.startswith(header) else 1)
    assert run("trace", "-", *chosen, "-o", str(path), "--exclude-first", "2", input=b"Austin\n").exit_code == 0
    graph = AttributionGraph.load(path)
    assert graph.settings["excluded_first"] == 2
    assert int(graph.active_features[:, 1].min()) == 2
    result = run("trace", "<bos><bos>Austin\\n", *chosen)
    assert [line.split(" stands")[0].split(" in ")[0] for line in result.stderr.splitlines()] == [
        "note: <bos>",
        "note: \\n",
    ]


def test_standard_input_that_is_not_text(chosen):
    error = fails("trace", "-", *chosen, input=b"w5 \xff w6")
    assert error == "error: standard input is not valid UTF-8: byte 4 is 0xFF\n"


def test_nothing_explained_has_no_score(chosen):
    result = run("trace", "w5 w66", *chosen, "--exclude-first", "3")
    assert result.exit_code == 0, result.output
    assert "score –: no features and no errors" in result.output
    assert "1.000 of" not in result.output


def test_show_in_silence_still_writes(raw, tmp_path):
    result = run("show", str(raw), "-q", "-o", str(tmp_path / "g.dot"))
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert (tmp_path / "g.dot").is_file()


@needs_pure
def test_letters_that_a_picture_lacks_are_one_line(raw, tmp_path, monkeypatch):
    graph = AttributionGraph.load(raw)
    graph.token_strings[-1] = "中"
    graph.save(tmp_path / "g.safetensors")
    monkeypatch.setenv("PATH", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run("show", str(tmp_path / "g.safetensors"), "-q", "-o", str(tmp_path / "g.png"))
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("note: ")
    assert "has no letters for 中" in line


@needs_graphviz
def test_a_token_that_is_a_bracket_is_drawn(raw, tmp_path):
    graph = AttributionGraph.load(raw)
    graph.token_strings[:] = ["]"] * len(graph.token_strings)
    graph.save(tmp_path / "g.safetensors")
    outputs = [tmp_path / f"g.{suffix}" for suffix in ("dot", "svg", "json", "html", "graphml")]
    result = run(
        "show", str(tmp_path / "g.safetensors"), "-q", *[part for path in outputs for part in ("-o", str(path))]
    )
    assert result.exit_code == 0, result.output
    assert all(path.is_file() for path in outputs)


def test_weights_that_float32_cannot_hold_are_left_out_and_said(raw, tmp_path):
    assert run("show", str(raw), "-q", "-o", str(tmp_path / "g.json")).exit_code == 0
    content = json.loads((tmp_path / "g.json").read_text())
    content["links"][0]["weight"] = 1e308
    (tmp_path / "g.json").write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("view", str(tmp_path / "g.json"), "-o", str(tmp_path / "g.html")).exit_code == 0
    assert "1 links were left out: their weights are beyond 3.4e+38" in (tmp_path / "g.html").read_text()


FIRST_COLLECTION = """
import gc, sys
from crosstrace.tracer.commands.app import main
usual, sys.argv = gc.get_threshold(), ["crosstrace", "--version"]
try:
    main()
finally:
    late = gc.get_threshold()[0]
    gc.collect()
    print(late > 100 * usual[0], gc.get_threshold() == usual, gc.callbacks, file=sys.stderr)
"""


def test_only_the_first_collection_comes_late():
    done = subprocess.run([sys.executable, "-c", FIRST_COLLECTION], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["True", "True", "[]"]
