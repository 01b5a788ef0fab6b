"""States that the page saved, read back as node numbers; everything else is named."""

import json

import pytest
from graph_samples import random_graph

from crosstrace.graphs import read_state
from crosstrace.graphs.viewer_ids import node_ids

GRAPH = random_graph()
IDS = node_ids(GRAPH)


def saved(tmp_path, content):
    path = tmp_path / "s.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_pins_and_supernodes_become_node_numbers(tmp_path):
    q_params = {
        "pinnedIds": [IDS[5], IDS[1]],
        "supernodes": [["a <b>", IDS[1], IDS[2]], ["b", IDS[2], IDS[7]], ["none"]],
    }
    state = read_state(saved(tmp_path, {"qParams": q_params}), GRAPH)
    assert state.supernodes == [("a <b>", [1, 2]), ("b", [7])]
    assert state.pinned == [5, 1, 2, 7]


def test_ids_joined_by_commas_and_empty_states(tmp_path):
    state = read_state(saved(tmp_path, {"qParams": {"pinnedIds": f"{IDS[5]},{IDS[1]}"}}), GRAPH)
    assert state == ([5, 1], [])
    assert read_state(saved(tmp_path, {"qParams": {}}), GRAPH) == ([], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not a saved state: expected 'qParams'"),
        ("{", "not a JSON file"),
        ({"qParams": []}, "not a saved state"),
        ({"qParams": {"pinnedIds": [1]}}, "'pinnedIds' is not a list of node ids"),
        ({"qParams": {"supernodes": [[]]}}, "'supernodes' is not a list of lists, each a name and node ids"),
        ({"qParams": {"supernodes": "x"}}, "'supernodes' is not a list of lists"),
        ({"qParams": {"pinnedIds": ["9_9_9"]}}, "node '9_9_9' is not in this graph"),
    ],
)
def test_what_is_no_state_is_named(tmp_path, content, message):
    path = saved(tmp_path, content)
    with pytest.raises(ValueError, match=message) as raised:
        read_state(path, GRAPH)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_state(tmp_path / "none.json", GRAPH)
