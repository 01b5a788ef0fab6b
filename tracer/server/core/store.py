"""The graphs that a server keeps: one SQLite database, the only state of its folder.

Every graph is written in one transaction, with a write-ahead log: a process that is killed loses none that it has answered
with. Beyond a size the oldest graphs go.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosstrace.graphs import AttributionGraph

FILE = "graphs.sqlite"
_VERSION = 1
_TABLES = """
create table if not exists facts (name text primary key, value text not null);
create table if not exists graphs (
    id text primary key, slug text not null, scan text not null, made real not null, size integer not null,
    about text not null, state text not null, graph blob not null, page blob not null
);
create index if not exists graphs_by_slug on graphs (slug, made);
create index if not exists graphs_by_time on graphs (made);
create table if not exists edits (
    id text primary key, graph text not null references graphs (id) on delete cascade, made real not null,
    content text not null
);
create index if not exists edits_by_graph on edits (graph, made);
"""
_EDITS_KEPT = 100  # of a graph


@dataclass(frozen=True)
class Entry:
    """A graph that is kept, without its content.

    Attributes:
        id: Its id here: letters, digits, `-` and `_`.
        slug: Its name in viewers; several may have the same.
        scan: The name of its model in viewers.
        made: When it was traced, in seconds since 1970.
        size: Bytes that it takes.
        about: What a list shows of it: prompt, answer, model, how it was asked for.
        state: What is pinned, grouped and selected: `qParams`, thresholds and the page's `fragment`; may be empty.
    """

    id: str
    slug: str
    scan: str
    made: float
    size: int
    about: dict[str, Any]
    state: dict[str, Any]


class GraphStore:
    """The database. Every method may be called from any thread."""

    def __init__(self, folder: Path, kept_bytes: int) -> None:
        """
        Args:
            folder: Made if it does not exist.
            kept_bytes: Graphs beyond this size are dropped, the oldest first; the newest stays whatever its size.

        Raises:
            OSError: The folder cannot be made or written to.
            ValueError: Its database is damaged, or of a newer crosstrace.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self.kept_bytes, self._lock = folder, kept_bytes, threading.Lock()
        path = folder / FILE
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            path.chmod(0o600)  # prompts are private
            for setting in ("auto_vacuum = incremental", "journal_mode = wal", "foreign_keys = on"):
                self._database.execute(f"pragma {setting}")
            with self._transaction() as database:
                for table in _TABLES.split(";"):
                    database.execute(table)
                database.execute("insert or ignore into facts values ('version', ?)", (str(_VERSION),))
                database.execute("insert or ignore into facts values ('token', ?)", (secrets.token_urlsafe(32),))
        except sqlite3.DatabaseError as problem:
            raise ValueError(f"{path}: not a database of graphs that can be used ({problem})") from None
        if int(self._fact("version")) > _VERSION:
            raise ValueError(f"{path}: written by a newer crosstrace; use that, or another folder")

    @property
    def token(self) -> str:
        """The page's token. It outlives the process, so that an open page goes on working when the server is back."""
        return self._fact("token")

    def add(
        self, graph: AttributionGraph, page: Mapping[str, Any], slug: str, scan: str, about: Mapping[str, Any]
    ) -> Entry:
        """Keep a graph; older ones may go to make room.

        Args:
            graph: Pruned.
            page: The content of its page, as `page_data` returns it.
            slug: Its name in viewers.
            scan: The name of its model in viewers.
            about: What a list shows of it.

        Raises:
            ValueError: It is too large for a database.
            OSError: The disk is full.
        """
        with tempfile.TemporaryDirectory(prefix="crosstrace-") as temporary:
            path = Path(temporary) / "graph.safetensors"
            graph.save(path)
            blob = path.read_bytes()
        content = zlib.compress(json.dumps(page, allow_nan=False).encode(), 1)
        size = len(blob) + len(content)
        entry = Entry(secrets.token_urlsafe(9), slug, scan, time.time(), size, dict(about), {})
        values = (entry.id, slug, scan, entry.made, size, json.dumps(entry.about), "{}", blob, content)
        try:
            with self._transaction() as database:
                database.execute("insert into graphs values (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
                self._make_room(entry)
        except (sqlite3.DataError, OverflowError) as problem:
            raise ValueError(f"the graph takes {size / 1e6:,.0f} MB, too much for a database ({problem})") from None
        except sqlite3.OperationalError as problem:
            raise OSError(f"{self.folder / FILE}: {problem}") from None
        with self._lock:
            self._database.execute("pragma incremental_vacuum")
        return entry

    def _make_room(self, newest: Entry) -> None:
        rows = self._database.execute("select id, size from graphs order by made desc, rowid desc").fetchall()
        total = 0
        for row in rows:
            total += row["size"]
            if total > self.kept_bytes and row["id"] != newest.id:
                self._database.execute("delete from graphs where id = ?", (row["id"],))

    def entries(self, limit: int = 200) -> list[Entry]:
        """Return what is known of the newest graphs, newest first, without what is pinned and grouped."""
        sql = f"select {_WITHOUT_STATE} from graphs order by made desc, rowid desc limit ?"
        return [_entry(row) for row in self._rows(sql, limit)]

    def entry(self, graph_id: str) -> Entry | None:
        """Return what is known of a graph; None if there is none with that id."""
        found = self._rows(f"select {_OF_ENTRY} from graphs where id = ?", graph_id)
        return _entry(found[0]) if found else None

    def by_slug(self, slug: str, scan: str | None = None) -> Entry | None:
        """Return the newest graph with a name; None if there is none.

        Args:
            slug: The name.
            scan: Of this model only.
        """
        sql = (
            f"select {_OF_ENTRY} from graphs where slug = ? and (? is null or scan = ?) order by made desc, rowid desc"
        )
        found = self._rows(f"{sql} limit 1", slug, scan, scan)
        return _entry(found[0]) if found else None

    def graph(self, graph_id: str) -> AttributionGraph | None:
        """Return a graph; None if there is none with that id."""
        if (blob := self.graph_bytes(graph_id)) is None:
            return None
        with tempfile.TemporaryDirectory(prefix="crosstrace-") as temporary:
            path = Path(temporary) / "graph.safetensors"
            path.write_bytes(blob)
            return AttributionGraph.load(path)

    def graph_bytes(self, graph_id: str) -> bytes | None:
        """Return the `.safetensors` file of a graph; None if there is none with that id."""
        found = self._rows("select graph from graphs where id = ?", graph_id)
        return bytes(found[0]["graph"]) if found else None

    def page(self, graph_id: str) -> dict[str, Any] | None:
        """Return the content of a graph's page; None if there is none with that id."""
        found = self._rows("select page from graphs where id = ?", graph_id)
        return dict(json.loads(zlib.decompress(found[0]["page"]))) if found else None

    def save_state(self, graph_id: str, state: Mapping[str, Any]) -> bool:
        """Keep what is pinned, grouped and selected; say whether there is such a graph."""
        return self._change("update graphs set state = ? where id = ?", json.dumps(state), graph_id)

    def delete(self, graph_id: str) -> bool:
        """Drop a graph; say whether there was one."""
        return self._change("delete from graphs where id = ?", graph_id)

    def add_edit(self, graph_id: str, content: Mapping[str, Any]) -> str:
        """Keep what interventions on a graph's prompt did; return its id."""
        edit_id = secrets.token_urlsafe(9)
        kept = "select id from edits where graph = ? order by made desc limit ?"
        drop = f"delete from edits where graph = ? and id not in ({kept})"
        try:
            with self._transaction() as database:
                values = (edit_id, graph_id, time.time(), json.dumps(content))
                database.execute("insert into edits values (?, ?, ?, ?)", values)
                database.execute(drop, (graph_id, graph_id, _EDITS_KEPT))
        except sqlite3.IntegrityError:
            raise ValueError("the graph is not kept any more") from None
        return edit_id

    def edits(self, graph_id: str) -> list[dict[str, Any]]:
        """Return what interventions on a graph's prompt did, newest first, each with its `id` and `made`."""
        rows = self._rows("select id, made, content from edits where graph = ? order by made desc", graph_id)
        return [{"id": row["id"], "made": row["made"], **json.loads(row["content"])} for row in rows]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    def _fact(self, name: str) -> str:
        return str(self._rows("select value from facts where name = ?", name)[0]["value"])

    def _rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(sql, values).fetchall()

    def _change(self, sql: str, *values: Any) -> bool:
        with self._transaction() as database:
            return database.execute(sql, values).rowcount > 0

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database, self._lock)


class _Transaction:
    """All or nothing, one at a time."""

    def __init__(self, database: sqlite3.Connection, lock: threading.Lock) -> None:
        self._database, self._lock = database, lock

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            self._database.execute("begin immediate")
        except BaseException:
            self._lock.release()
            raise
        return self._database

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if self._database.in_transaction:
                self._database.execute("commit" if kind is None else "rollback")
        finally:
            self._lock.release()


_WITHOUT_STATE = "id, slug, scan, made, size, about, '{}' as state"
_OF_ENTRY = "id, slug, scan, made, size, about, state"


def _entry(row: sqlite3.Row) -> Entry:
    known = dict(row)
    return Entry(**{**known, "about": json.loads(known["about"]), "state": json.loads(known["state"])})
