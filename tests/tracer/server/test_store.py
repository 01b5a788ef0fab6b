"""The database of graphs: nothing that was answered with is lost, old graphs make room, damage is one line."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("fastapi")

from graph_samples import random_graph

from crosstrace.graphs import prune
from crosstrace.graphs.page.data import page_data
from crosstrace.tracer.server.core.store import FILE, GraphStore

GRAPH = prune(random_graph(3, L=4, P=5, per_layer=8, k=2))
PAGE = page_data(GRAPH)


def add(store, slug="one", scan="model"):
    return store.add(GRAPH, PAGE, slug, scan, {"prompt": "a <b>"})


def same(a, b):
    return a.active_features.equal(b.active_features) and (a.edges != b.edges).nnz == 0 and a.settings == b.settings


def test_a_graph_comes_back_as_it_was_with_its_page_and_state(tmp_path):
    store = GraphStore(tmp_path, 10**9)
    entry = add(store)
    assert store.save_state(entry.id, {"qParams": {"pinnedIds": ["0_1_2"]}})
    edit = store.add_edit(entry.id, {"what": "ablated"})
    store.close()
    again = GraphStore(tmp_path, 10**9)
    assert again.token == store_token(tmp_path)
    assert same(again.graph(entry.id), GRAPH)
    assert again.page(entry.id) == PAGE
    found = again.entry(entry.id)
    assert (found.about, found.state["qParams"]) == ({"prompt": "a <b>"}, {"pinnedIds": ["0_1_2"]})
    assert [(one["id"], one["what"]) for one in again.edits(entry.id)] == [(edit, "ablated")]


def store_token(folder):
    with sqlite3.connect(folder / FILE) as database:
        return database.execute("select value from facts where name = 'token'").fetchone()[0]


def test_the_oldest_graphs_make_room_and_the_newest_stays(tmp_path):
    size = add(GraphStore(tmp_path / "measure", 10**9)).size
    store = GraphStore(tmp_path / "kept", int(3.5 * size))
    made = [add(store, f"g{i}").id for i in range(6)]
    store.add_edit(made[-1], {})
    assert [entry.id for entry in store.entries()] == made[:2:-1]
    tiny = GraphStore(tmp_path / "tiny", 1)
    only = [add(tiny) for _ in range(2)][-1]
    assert [entry.id for entry in tiny.entries()] == [only.id]


def test_what_was_dropped_gives_its_bytes_back(tmp_path):
    size = add(GraphStore(tmp_path / "measure", 10**9)).size
    store = GraphStore(tmp_path / "kept", 2 * size)
    for _ in range(30):
        add(store)
    store.close()
    assert (tmp_path / "kept" / FILE).stat().st_size < 6 * size + 200_000


def test_the_newest_of_a_name_is_found(tmp_path):
    store = GraphStore(tmp_path, 10**9)
    add(store)
    newest = add(store)
    other = add(store, scan="other")
    assert store.by_slug("one").id == other.id
    assert store.by_slug("one", "model").id == newest.id
    assert store.by_slug("two") is None


def test_what_belongs_to_a_graph_goes_with_it(tmp_path):
    store = GraphStore(tmp_path, 10**9)
    entry = add(store)
    store.add_edit(entry.id, {})
    assert store.delete(entry.id)
    assert not store.delete(entry.id)
    assert (store.edits(entry.id), store.graph(entry.id), store.page(entry.id)) == ([], None, None)
    assert not store.save_state(entry.id, {})
    with pytest.raises(ValueError, match="not kept any more"):
        store.add_edit(entry.id, {})


def test_prompts_are_for_the_owner_alone(tmp_path):
    GraphStore(tmp_path / "kept", 10**9)
    assert stat.S_IMODE((tmp_path / "kept" / FILE).stat().st_mode) == 0o600


def test_the_database_is_the_only_state_of_its_folder(tmp_path):
    store = GraphStore(tmp_path, 10**9)
    add(store)
    store.close()
    assert {path.name for path in tmp_path.iterdir()} == {FILE}


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path):
    (tmp_path / FILE).write_bytes(b"not a database" * 1000)
    with pytest.raises(ValueError, match=r"graphs\.sqlite: not a database"):
        GraphStore(tmp_path, 10**9)
    (tmp_path / "newer").mkdir()
    GraphStore(tmp_path / "newer", 10**9).close()
    with sqlite3.connect(tmp_path / "newer" / FILE) as database:
        database.execute("update facts set value = '99' where name = 'version'")
    with pytest.raises(ValueError, match="written by a newer crosstrace"):
        GraphStore(tmp_path / "newer", 10**9)


def test_a_process_that_is_killed_loses_nothing_that_it_answered_with(tmp_path):
    """Kill −9 in the middle of writing: every graph that was acknowledged is whole afterwards."""
    script = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r} + "/../../support")
        from pathlib import Path
        from graph_samples import random_graph
        from crosstrace.graphs import prune
        from crosstrace.graphs.page.data import page_data
        from crosstrace.tracer.server.core.store import GraphStore
        graph = prune(random_graph(3, L=4, P=5, per_layer=8, k=2))
        page = page_data(graph)
        store = GraphStore(Path({str(tmp_path)!r}), 10**9)
        while True:
            print(store.add(graph, page, "one", "model", {{}}).id, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split("\n")[:-1]
    process.wait()
    store = GraphStore(tmp_path, 10**9)
    assert len(told) >= 20
    assert set(told) <= {entry.id for entry in store.entries(100_000)}
    assert all(same(store.graph(graph_id), GRAPH) for graph_id in told)
