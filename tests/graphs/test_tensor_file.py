"""Tensors written one by one are what safetensors reads, and the other way round."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from crosstrace.graphs.tensor_file import TensorSource, map_tensors, narrowest, write_tensors

ARRAYS = {
    "a": np.arange(3, dtype=np.uint8),
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "c": np.array([-5, 7], np.int64),
    "d": np.zeros((0, 4), np.uint16),
    "e": np.array([1.5], np.float16),
    "f": np.array(3.0, np.float64),
}


def written(path, arrays=ARRAYS):
    write_tensors(path, ("what", "tést"), [TensorSource.of(name, array) for name, array in arrays.items()])
    return path


def test_safetensors_reads_what_is_written(tmp_path):
    loaded = safetensors.numpy.load_file(written(tmp_path / "x.safetensors"))
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_what_safetensors_writes_is_mapped(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"what": "test"})
    metadata, mapped = map_tensors(path)
    assert metadata == {"what": "test"}
    for name, array in ARRAYS.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path):
    turned = dict(reversed([(name, array) for name, array in ARRAYS.items() if array.itemsize != 1]))
    again = {name: ARRAYS[name] for name in turned}
    assert written(tmp_path / "a", turned).read_bytes() == written(tmp_path / "b", dict(again)).read_bytes()


def test_a_tensor_is_asked_for_once_and_in_turn(tmp_path):
    asked = []

    def source(name, array):
        return TensorSource(name, array.dtype, array.shape, lambda: asked.append(name) or array)

    write_tensors(tmp_path / "x", ("a", "b"), [source(name, array) for name, array in ARRAYS.items()])
    assert sorted(asked) == sorted(ARRAYS)


def test_empty_files_of_tensors(tmp_path):
    write_tensors(tmp_path / "x", ("a", "b"), [])
    assert map_tensors(tmp_path / "x") == ({"a": "b"}, {})


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_damaged_file_is_named(tmp_path, cut):
    path = written(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"x\.safetensors: damaged or not a safetensors file") as problem:
        map_tensors(path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
        {"dtype": "U8", "shape": [9], "data_offsets": [0, 2]},
        {"dtype": "U8", "shape": [2], "data_offsets": [-2, 0]},
        {"dtype": "U8", "shape": "2", "data_offsets": [0, 2]},
        {"dtype": "U8"},
        [],
    ],
)
def test_headers_that_lie(tmp_path, entry):
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        map_tensors(tmp_path / "x")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        map_tensors(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        map_tensors(tmp_path)


@pytest.mark.parametrize(("largest", "size"), [(0, 1), (255, 1), (256, 2), (65535, 2), (65536, 4), (2**32, 8)])
def test_the_narrowest_type(largest, size):
    assert narrowest(largest).itemsize == size
