"""The CPU's loops over single entries, compiled by numba (extra `train`); imported only where numba is installed.

Tensors arrive flat, as the one contiguous run of memory that holds them, with the strides of their dimensions. Each function
works on a range of rows or positions, lets go of Python's lock and writes nothing outside its range: threads share a layer,
and the result does not depend on their number.

Sources `S[j]` (P, D) and rows `W[:, j]` (U, D) of one target layer stay in a core's cache where those of all J would not, so
the loop over j is outside, that over rows or positions inside. Entries are taken four at a time.

Letters: P positions, n entries of a layer, U stored rows, u touched rows, J layers a feature writes to, D d_model.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

# Sums may be taken in lanes, in an order that is fixed when a function is compiled. NaN and infinity stay what they are.
_OPTIONS: Any = {
    "nogil": True,
    "error_model": "numpy",  # divides by zero as C does; Python's exception would keep loops from becoming SIMD
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
_compiled = numba.njit(cache=True, **_OPTIONS)
_inlined = numba.njit(forceinline=True, **_OPTIONS)  # a call would count references to its arrays, atomically
# Below this many multiplications a second thread costs more than it gains.
_LEAST_WORK = 1 << 20


@_compiled
def group_by_feature(features_n, n_rows, order_n, rows_u, offsets_u):
    """Sort entries by feature, stably; fill order, touched rows and offsets; return the number of touched rows."""
    starts = np.zeros(n_rows + 1, np.int64)
    for i in range(len(features_n)):
        starts[features_n[i] + 1] += 1
    n_touched = 0
    for row in range(n_rows):
        if starts[row + 1]:
            rows_u[n_touched] = row
            offsets_u[n_touched] = starts[row]
            n_touched += 1
        starts[row + 1] += starts[row]
    offsets_u[n_touched] = len(features_n)
    for i in range(len(features_n)):
        feature = features_n[i]
        order_n[starts[feature]] = i
        starts[feature] += 1
    return n_touched


@_inlined
def _add_1(out, w0, s0):
    for d in range(len(out)):
        out[d] += w0 * s0[d]


@_inlined
def _add_4(out, w0, s0, w1, s1, w2, s2, w3, s3):
    for d in range(len(out)):
        out[d] += (w0 * s0[d] + w1 * s1[d]) + (w2 * s2[d] + w3 * s3[d])


@_inlined
def _add_and_dot_1(out, row, w0, s0):
    product = np.float32(0)
    for d in range(len(out)):
        source = s0[d]
        out[d] += w0 * source
        product += row[d] * source
    return product


@_inlined
def _add_and_dot_4(out, row, w0, s0, w1, s1, w2, s2, w3, s3):
    product0 = product1 = product2 = product3 = np.float32(0)
    for d in range(len(out)):
        source0, source1, source2, source3, weight = s0[d], s1[d], s2[d], s3[d], row[d]
        out[d] += (w0 * source0 + w1 * source1) + (w2 * source2 + w3 * source3)
        product0 += weight * source0
        product1 += weight * source1
        product2 += weight * source2
        product3 += weight * source3
    return product0, product1, product2, product3


@_compiled
def decode_range(
    out, stride_oj, stride_op, rows, stride_ru, stride_rj, n_written, width, offsets_p, index_n, values_n, start, stop
):
    """Add the rows of the entries of the positions `start : stop` to their outputs."""
    for j in range(n_written):
        for p in range(start, stop):
            at = j * stride_oj + p * stride_op
            target = out[at : at + width]
            i, last = offsets_p[p], offsets_p[p + 1]
            while i + 4 <= last:
                a0 = index_n[i] * stride_ru + j * stride_rj
                a1 = index_n[i + 1] * stride_ru + j * stride_rj
                a2 = index_n[i + 2] * stride_ru + j * stride_rj
                a3 = index_n[i + 3] * stride_ru + j * stride_rj
                _add_4(
                    target,
                    values_n[i],
                    rows[a0 : a0 + width],
                    values_n[i + 1],
                    rows[a1 : a1 + width],
                    values_n[i + 2],
                    rows[a2 : a2 + width],
                    values_n[i + 3],
                    rows[a3 : a3 + width],
                )
                i += 4
            while i < last:
                a0 = index_n[i] * stride_ru + j * stride_rj
                _add_1(target, values_n[i], rows[a0 : a0 + width])
                i += 1


@_inlined
def _row_gradient(gradient, row, products_n, source, stride_sp, shift, positions_n, weights_n, order_n, first, last):
    """Sum the weighted sources of a row's entries; add the products of the row and its sources to `products_n`."""
    width = len(gradient)
    gradient[:] = 0
    i = first
    while i + 4 <= last:
        e0, e1, e2, e3 = order_n[i], order_n[i + 1], order_n[i + 2], order_n[i + 3]
        a0, a1 = positions_n[e0] * stride_sp + shift, positions_n[e1] * stride_sp + shift
        a2, a3 = positions_n[e2] * stride_sp + shift, positions_n[e3] * stride_sp + shift
        product0, product1, product2, product3 = _add_and_dot_4(
            gradient,
            row,
            weights_n[e0],
            source[a0 : a0 + width],
            weights_n[e1],
            source[a1 : a1 + width],
            weights_n[e2],
            source[a2 : a2 + width],
            weights_n[e3],
            source[a3 : a3 + width],
        )
        products_n[e0] += product0
        products_n[e1] += product1
        products_n[e2] += product2
        products_n[e3] += product3
        i += 4
    while i < last:
        e0 = order_n[i]
        a0 = positions_n[e0] * stride_sp + shift
        products_n[e0] += _add_and_dot_1(gradient, row, weights_n[e0], source[a0 : a0 + width])
        i += 1


@_compiled
def gradient_range(
    products_n,
    gradients,
    rows,
    stride_ru,
    stride_rj,
    source,
    stride_sj,
    stride_sp,
    n_written,
    width,
    positions_n,
    weights_n,
    order_n,
    rows_u,
    offsets_u,
    start,
    stop,
):
    """Write the gradients (u, J, D) of the touched rows `start : stop`, and the products of their entries."""
    for j in range(n_written):
        for u in range(start, stop):
            at, to = rows_u[u] * stride_ru + j * stride_rj, (u * n_written + j) * width
            _row_gradient(
                gradients[to : to + width],
                rows[at : at + width],
                products_n,
                source,
                stride_sp,
                j * stride_sj,
                positions_n,
                weights_n,
                order_n,
                offsets_u[u],
                offsets_u[u + 1],
            )


def _adam_row(row, gradient, first, second, bits, size, root, beta1, beta2, epsilon):
    """Update one row; its moments are float32 or the upper halves of float32, which are bfloat16."""


@overload(_adam_row, jit_options=_OPTIONS)
def _adam_row_of(row, gradient, first, second, bits, size, root, beta1, beta2, epsilon):
    if first.dtype == numba.types.float32:

        def wide(row, gradient, first, second, bits, size, root, beta1, beta2, epsilon):
            one = np.float32(1)
            for d in range(len(row)):
                g = gradient[d]
                m = first[d] + (one - beta1) * (g - first[d])
                v = beta2 * second[d] + (one - beta2) * g * g
                first[d] = m
                second[d] = v
                row[d] -= size * m / (np.sqrt(v) * root + epsilon)

        return wide

    def narrow(row, gradient, first, second, bits, size, root, beta1, beta2, epsilon):
        one = np.float32(1)
        width = len(row)
        # bits (2, D) uint32 and these are the same memory
        means, squares = bits[0].view(np.float32), bits[1].view(np.float32)
        for d in range(width):
            bits[0, d] = np.uint32(first[d]) << np.uint32(16)
            bits[1, d] = np.uint32(second[d]) << np.uint32(16)
        for d in range(width):
            g = gradient[d]
            m = means[d] + (one - beta1) * (g - means[d])
            v = beta2 * squares[d] + (one - beta2) * g * g
            means[d] = m
            squares[d] = v
            row[d] -= size * m / (np.sqrt(v) * root + epsilon)
        _round(bits[0], means, first)
        _round(bits[1], squares, second)

    return narrow


@_compiled
def _round(bits, values, out):
    """Round float32 to bfloat16, to nearest, ties to even."""
    for d in range(len(out)):
        rounded = (bits[d] + np.uint32(0x7FFF) + ((bits[d] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        out[d] = np.uint16(rounded) if values[d] == values[d] else np.uint16(0x7FC0)


@_compiled
def adam_range(
    products_n,
    rows,
    stride_ru,
    stride_rj,
    first,
    second,
    stride_mu,
    stride_mj,
    steps,
    source,
    stride_sj,
    stride_sp,
    n_written,
    width,
    positions_n,
    weights_n,
    order_n,
    rows_u,
    offsets_u,
    learning_rate,
    beta1,
    beta2,
    epsilon,
    start,
    stop,
):
    """Update the touched rows `start : stop` with Adam, and write the products of their entries with the rows before."""
    gradient, bits = np.empty(width, np.float32), np.empty((2, width), np.uint32)
    narrow1, narrow2, small = np.float32(beta1), np.float32(beta2), np.float32(epsilon)
    for u in range(start, stop):
        steps[rows_u[u]] += 1
    for j in range(n_written):
        for u in range(start, stop):
            step = steps[rows_u[u]]
            size = np.float32(learning_rate / (1 - beta1**step))
            root = np.float32(1 / np.sqrt(1 - beta2**step))
            at, state = rows_u[u] * stride_ru + j * stride_rj, rows_u[u] * stride_mu + j * stride_mj
            row = rows[at : at + width]
            _row_gradient(
                gradient,
                row,
                products_n,
                source,
                stride_sp,
                j * stride_sj,
                positions_n,
                weights_n,
                order_n,
                offsets_u[u],
                offsets_u[u + 1],
            )
            _adam_row(
                row,
                gradient,
                first[state : state + width],
                second[state : state + width],
                bits,
                size,
                root,
                narrow1,
                narrow2,
                small,
            )


def flat(tensor: Tensor) -> np.ndarray:
    """Return the memory of a tensor from its first element to its last as one array; bfloat16 as its bits."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    run = tensor.detach().as_strided((extent if tensor.numel() else 0,), (1,))
    return run.view(torch.uint16).numpy() if run.dtype == torch.bfloat16 else run.numpy()


def in_parts(function: Callable[..., None], arguments: Sequence[Any], bounds: Sequence[int]) -> None:
    """Call `function(*arguments, start, stop)` for the ranges between the bounds, each in a thread."""
    parts = list(pairwise(bounds))
    others = [_threads().submit(function, *arguments, *part) for part in parts[1:]]
    for part in parts[:1]:
        function(*arguments, *part)
    for other in others:
        other.result()


def even_bounds(offsets: np.ndarray, n_groups: int, work_per_entry: int) -> list[int]:
    """Cut groups of entries into a range for each thread, with about equally many entries each.

    Args:
        offsets: (groups + 1,) where the entries of each group begin.
        n_groups: The number of groups.
        work_per_entry: Multiplications.

    Returns:
        The bounds of the ranges, from 0 to `n_groups`.
    """
    n_entries = int(offsets[n_groups])
    n_threads = torch.get_num_threads() if n_entries * work_per_entry >= _LEAST_WORK else 1
    # a group counts as an entry too: each touched row is updated once
    done = offsets[: n_groups + 1] + np.arange(n_groups + 1)
    inner = np.searchsorted(done, (n_entries + n_groups) * np.arange(1, n_threads) / n_threads)
    return [0, *(int(bound) for bound in inner), n_groups]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="crosstrace-kernels")
