"""Sweeps in one process: the same graphs whatever the shards and the order, interruptions, broken prompts, tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as parquet
import pytest
import torch
from sweep_samples import SlowDemo, cities, files_of, write_jsonl
from typer.testing import CliRunner

from crosstrace.graphs import AttributionGraph, prune
from crosstrace.graphs.aggregates.measured import node_shares
from crosstrace.replacement_model import ReplacementModel
from crosstrace.tracer import trace
from crosstrace.tracer.commands.app import app
from crosstrace.tracer.sweeps.folder import Manifest
from crosstrace.tracer.sweeps.prompts import SweepPrompt, read_prompts
from crosstrace.tracer.sweeps.run import sweep
from crosstrace.tracer.sweeps.settings import TraceSettings

N = 6


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def model():
    return ReplacementModel.demo()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "cities.jsonl", cities(N))


@pytest.fixture(scope="module")
def whole(model, prompts, tmp_path_factory):
    """A sweep over all prompts in one go."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    report = sweep(model, read_prompts(prompts), folder, progress=False)
    assert (report.done, report.failures) == (N, ())
    return folder


def test_a_folder_holds_graphs_a_manifest_and_tables(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "edges.parquet",
        "graphs",
        "graphs.parquet",
        "manifest.json",
        "nodes.parquet",
    ]
    assert sorted(path.name for path in whole.rglob("*.safetensors")) == [
        f"{i:06d}.safetensors" for i in range(1, N + 1)
    ]
    assert len(list((whole / "graphs").iterdir())) == N  # nothing is left beside them


def test_a_graph_is_what_trace_makes_of_its_prompt(model, prompts, whole):
    prompt = read_prompts(prompts)[2].prompt
    alone = prune(trace(model, prompt, batch_size=409))
    swept = AttributionGraph.load(whole / "graphs" / "000003.safetensors")
    assert torch.equal(alone.adjacency, swept.adjacency)
    assert torch.equal(alone.node_mask, swept.node_mask)
    assert swept.prompt == alone.prompt


def test_shards_and_order_change_no_bit(model, prompts, whole, tmp_path):
    given = read_prompts(prompts)
    for number in (3, 1, 2):
        report = sweep(model, given, tmp_path, shard=(number, 3), progress=False)
        assert report.done == len(range(number, N + 1, 3))
    assert files_of(tmp_path) == files_of(whole)
    for table in ("graphs", "nodes", "edges"):
        rows = [
            row for path in tmp_path.glob(f"{table}-*-of-3.parquet") for row in parquet.read_table(path).to_pylist()
        ]
        order = sorted(rows, key=lambda row: (row["graph"], *(row.get(key, 0) for key in ("node", "target", "source"))))
        assert order == parquet.read_table(whole / f"{table}.parquet").to_pylist()


def test_tables_say_what_graphs_hold(whole):
    nodes = parquet.read_table(whole / "nodes.parquet").to_pylist()
    edges = parquet.read_table(whole / "edges.parquet").to_pylist()
    graphs = parquet.read_table(whole / "graphs.parquet").to_pylist()
    assert [row["meta_city"] for row in graphs] == [row["city"] for row in cities(N)]
    for row in graphs:
        graph = AttributionGraph.load(whole / "graphs" / f"{row['graph']}.safetensors")
        own = [node for node in nodes if node["graph"] == row["graph"]]
        assert [node["node"] for node in own] == graph.kept_nodes()
        shares = node_shares(graph)
        for node in own:
            assert node["influence"] == shares[node["node"]]
            assert (node["layer"], node["position"]) == graph.place_of(node["node"])
        kept = graph.kept_edges()
        mine = [edge for edge in edges if edge["graph"] == row["graph"]]
        assert len(mine) == kept.nnz
        assert all(kept[edge["target"], edge["source"]] == edge["weight"] for edge in mine)
        # What enters at tokens and errors is all there is.
        layout = graph.layout
        assert shares[layout.errors].sum() + shares[layout.tokens].sum() == pytest.approx(1.0)


def test_resume_finishes_what_is_missing_and_nothing_else(model, prompts, whole, tmp_path):
    given = read_prompts(prompts)
    sweep(model, given, tmp_path, progress=False)
    kept = tmp_path / "graphs" / "000001.safetensors"
    before = kept.stat().st_mtime_ns
    for number in (2, 5):
        (tmp_path / "graphs" / f"00000{number}.safetensors").unlink()
    (tmp_path / "nodes.parquet").unlink()
    report = sweep(model, given, tmp_path, resume=True, progress=False)
    assert (report.done, report.traced) == (N, 2)
    assert kept.stat().st_mtime_ns == before
    assert files_of(tmp_path) == files_of(whole)
    for table in ("graphs", "nodes", "edges"):
        assert (tmp_path / f"{table}.parquet").read_bytes() == (whole / f"{table}.parquet").read_bytes()


def test_a_folder_with_a_sweep_is_not_written_over(prompts, whole):
    assert "--resume finishes it" in run("sweep", prompts, "-o", whole, "-q", code=1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--max-logits", "3"], "with --max-logits 10; this one has 3"),
        (["--target", '" Austin"'], "with --target none; this one has"),
        (["--attention"], "with --attention false; this one has true"),
        (["--threads", "2"], "with --threads 1; this one has 2"),
        (["--dtype", "float32"], "with other weights"),
        (["--exclude-first", "2"], "with --exclude-first 1; this one has 2"),
    ],
)
def test_a_changed_setting_is_refused_by_name(prompts, whole, options, why):
    assert why in run("sweep", prompts, "-o", whole, "--resume", *options, code=1)


def test_other_prompts_and_other_weights_are_refused(model, prompts, whole, tmp_path):
    rows = cities(N)
    rows[4]["prompt"] = "The capital of the state containing Austin is"
    changed = write_jsonl(tmp_path / "cities.jsonl", rows)
    with pytest.raises(ValueError, match=r"other prompts: cities\.jsonl, line 5 has changed \(prompt\)"):
        sweep(model, read_prompts(changed), whole, resume=True, progress=False)
    with pytest.raises(ValueError, match="is a sweep of 6 prompts; there are 5 now"):
        sweep(model, read_prompts(prompts)[:5], whole, resume=True, progress=False)
    with pytest.raises(ValueError, match="with other weights: the model and the transcoders changed"):
        sweep(ReplacementModel.from_pretrained("demo-chat"), read_prompts(prompts), whole, resume=True, progress=False)


def test_shards_of_other_prompts_or_another_number_do_not_mix(model, prompts, tmp_path):
    given = read_prompts(prompts)[:2]
    sweep(model, given, tmp_path, shard=(1, 2), progress=False)
    with pytest.raises(ValueError, match=r"other prompts: manifest-1-of-2\.json is of another file"):
        sweep(model, given[::-1], tmp_path, shard=(2, 2), progress=False)
    with pytest.raises(ValueError, match=r"with --shard i/n of n = 2; this one has 1"):
        sweep(model, given, tmp_path, progress=False)


def test_what_is_probably_not_meant_is_noted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("The capital of Zanzibarland is\n")
    said = run("sweep", path, "-o", tmp_path / "out")
    assert "note: a.txt, line 1: not in the vocabulary, read as unknown: Zanzibarland" in said


def test_where_no_prompt_can_be_traced_tables_are_empty(model, tmp_path):
    report = sweep(model, [SweepPrompt("one", problem="one: broken")], tmp_path, progress=False)
    assert (report.done, report.failures) == (0, (("one", "one: broken"),))
    assert len(parquet.read_table(tmp_path / "edges.parquet")) == 0


def test_a_broken_prompt_costs_its_own_graph_alone(tmp_path):
    rows = [*cities(1), {"prompt": "x " * 5000}, {"promt": 1}, {**cities(1)[0], "targets": ["nothing at all"]}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    said = run("sweep", path, "-o", tmp_path / "out", code=1)
    assert "1 graphs, 1 of them traced now" in said
    assert "a.jsonl, line 3: expected" in said
    states = {row["number"]: row for row in Manifest.read(tmp_path / "out" / "manifest.json").prompts}
    assert [states[i]["state"] for i in (1, 2, 3, 4)] == ["done", "failed", "failed", "failed"]
    assert "takes at most" in states[2]["error"]
    assert "not a single token" in states[4]["error"]
    assert all("\n" not in states[i]["error"] for i in (2, 3, 4))
    # Another try fails again, and touches nothing.
    run("sweep", path, "-o", tmp_path / "out", "--resume", "-q", code=1)
    assert len(parquet.read_table(tmp_path / "out" / "graphs.parquet")) == 1


def test_targets_of_a_prompt_come_before_those_of_the_sweep(model, tmp_path):
    given = [
        SweepPrompt("one", "The capital of Texas is", targets=('" Dallas"',)),
        SweepPrompt("two", "The capital of Texas is"),
    ]
    sweep(model, given, tmp_path, TraceSettings(targets=('" Austin"',)), progress=False)
    targets = [AttributionGraph.load(path).logit_strings for path in sorted(tmp_path.glob("graphs/*.safetensors"))]
    assert targets == [["Dallas"], ["Austin"]]


def test_head_loadings_are_in_the_tables(model, tmp_path):
    sweep(
        model, [SweepPrompt("one", "The capital of Texas is")], tmp_path, TraceSettings(attention=True), progress=False
    )
    edges = parquet.read_table(tmp_path / "edges.parquet").to_pylist()
    graph = AttributionGraph.load(tmp_path / "graphs" / "000001.safetensors")
    edge = next(edge for edge in edges if edge["heads"])
    heads = graph.attention.loadings.heads[graph.attention.loadings.of(edge["target"], edge["source"])]
    assert {(head["layer"], head["head"]): head["loading"] for head in edge["heads"]} == {
        (layer, head): float(heads[layer, head]) for layer, head in heads.nonzero().tolist()
    }


def test_a_killed_driver_loses_the_prompts_in_flight_alone(model, prompts, whole, tmp_path):
    code = (
        "from sweep_samples import SlowDemo; from crosstrace.tracer.sweeps.run import sweep; "
        "from crosstrace.tracer.sweeps.prompts import read_prompts; import sys; "
        "sweep(SlowDemo(0.3), read_prompts(sys.argv[1]), sys.argv[2], progress=False)"
    )
    path = os.pathsep.join(one for one in sys.path if one)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(prompts), str(tmp_path)], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        until = time.monotonic() + 120
        while len(files_of(tmp_path)) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = files_of(tmp_path)
    assert 2 <= len(done) < N
    assert done.items() <= files_of(whole).items()  # each is whole
    Manifest.read(tmp_path / "manifest.json")
    report = sweep(model, read_prompts(prompts), tmp_path, resume=True, progress=False)
    assert report.traced == N - len(done)
    assert files_of(tmp_path) == files_of(whole)
    assert (tmp_path / "edges.parquet").read_bytes() == (whole / "edges.parquet").read_bytes()


def test_an_interruption_says_how_to_go_on(prompts, tmp_path):
    class Interrupted(SlowDemo):
        def __call__(self):
            loaded = ReplacementModel.demo()
            local, seen = loaded.local, []

            def once(prompt):
                seen.append(prompt)
                if len(seen) == 3:
                    raise KeyboardInterrupt
                return local(prompt)

            loaded.local = once
            return loaded

    with pytest.raises(KeyboardInterrupt, match="2 of 6 prompts are traced; --resume finishes the rest"):
        sweep(Interrupted(0), read_prompts(prompts), tmp_path, progress=False)
    assert len(Manifest.read(tmp_path / "manifest.json").done) == 2


def test_a_full_disk_ends_the_sweep_and_what_is_there_stays_whole(model, prompts, whole, tmp_path, monkeypatch):
    save = AttributionGraph.save
    saved = []

    def until_full(graph, path):
        saved.append(path)
        if len(saved) > 3:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        save(graph, path)

    monkeypatch.setattr(AttributionGraph, "save", until_full)
    with pytest.raises(OSError, match=r"No space left.*3 prompts are traced; --resume finishes the rest"):
        sweep(model, read_prompts(prompts), tmp_path, progress=False)
    monkeypatch.undo()
    assert len(saved) == 4  # no further prompt is tried
    assert files_of(tmp_path).items() <= files_of(whole).items()
    assert sweep(model, read_prompts(prompts), tmp_path, resume=True, progress=False).traced == N - 3
    assert files_of(tmp_path) == files_of(whole)


def test_what_cannot_be_asked_for(model, prompts, tmp_path):
    given = read_prompts(prompts)
    with pytest.raises(ValueError, match=r"shard 4/3: expected i/n with i from 1 to n"):
        sweep(model, given, tmp_path, shard=(4, 3))
    with pytest.raises(ValueError, match=r"there are only 6 prompts"):
        sweep(model, given, tmp_path, shard=(1, 7))
    with pytest.raises(ValueError, match="give a function that loads it"):
        sweep(model, given, tmp_path, workers=2)
    assert "expected i/n, such as 2/3" in run("sweep", prompts, "-o", tmp_path / "x", "--shard", "2", code=1)
    assert not (tmp_path / "x").exists()


def test_without_pyarrow_or_ray_one_line_says_how_to_install(model, prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'crosstrace[ray]'" in run("sweep", prompts, "-o", tmp_path, "--workers", "2", code=1)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'crosstrace\[parquet\]'"):
        sweep(model, read_prompts(prompts), tmp_path)


def test_the_manifest_is_json_with_a_state_a_prompt(whole):
    kept = json.loads((whole / "manifest.json").read_text())
    assert kept["settings"]["weights"].keys() >= {"model/2", "transcoders/2", "exact"}
    assert {row["state"] for row in kept["prompts"]} == {"done"}
    assert kept["prompts"][0]["metadata"] == {key: cities(1)[0][key] for key in ("city", "state", "capital")}
