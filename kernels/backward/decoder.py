"""`decode_backward`: from the gradient of the reconstructions to those of the activations and of the decoder rows.

With `out[l + j, p] = Σ_i a_i W[f_i, j]` over the entries i of position p (`crosstrace.kernels.decode`) and G the gradient of
`out`, `d a_i = Σ_j <W[f_i, j], G[l + j, p_i]>` and `d W[f, j] = Σ_i a_i G[l + j, p_i]` over the entries i of feature f.

Letters: L layers, P positions, F features of a layer, D d_model, J layers a feature writes to, N active entries, n those of
one layer, U stored decoder rows of a layer, u those that are touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.backward.by_feature import LayerEntries
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments, adam_rows, check_moments
from crosstrace.kernels.backward.rows import layer_gradients, update_layer
from crosstrace.kernels.checks import check_float, check_index, check_row_index, check_rows, check_shape
from crosstrace.kernels.dispatch import choose_path


def decode_backward_reference(
    activations: SparseActivations, rows_ujd: Sequence[Tensor], gradient_lpd: Tensor
) -> tuple[Tensor, list[RowGradients]]:
    """Compute the definition, one entry after the other."""
    value_gradients, touched = [], []
    for layer, rows in enumerate(rows_ujd):
        entries = activations.layer(layer)
        dense_ujd, used = torch.zeros_like(rows), activations.features[entries]
        for position, feature, value in zip(
            activations.positions[entries], used, activations.values[entries], strict=True
        ):
            gradient_jd = gradient_lpd[layer : layer + rows.shape[1], position]
            value_gradients.append((rows[feature] * gradient_jd).sum())
            dense_ujd[feature] += value * gradient_jd
        touched.append(RowGradients(used.unique(), dense_ujd[used.unique()]))
    return torch.stack(value_gradients) if value_gradients else activations.values.new_zeros(0), touched


def decode_backward(
    activations: SparseActivations, rows_ujd: Sequence[Tensor], gradient_lpd: Tensor
) -> tuple[Tensor, list[RowGradients]]:
    """Compute the gradients of `decode` to the activations and to the decoder rows of the active features.

    Args:
        activations: N active entries.
        rows_ujd: For each source layer l the decoder (U_l, J_l, D), float32, one row per feature: row `features[i]` belongs
            to entry i. Any strides with a contiguous last dimension.
        gradient_lpd: (L, P, D) float32, the gradient of what `decode` returns; its last dimension contiguous.

    Returns:
        The gradients of the activations, (N,) float32, and of the touched rows of each layer, (u, J_l, D).

    Raises:
        ValueError: A shape, dtype, device or stride does not fit, or a feature has no row; the message names the argument
            and what was expected.

    Example:
        >>> active = SparseActivations.from_indices(torch.tensor([[0, 0, 1]]), torch.tensor([2.0]), 1, 1)
        >>> values, (rows,) = decode_backward(active, [torch.ones(3, 1, 2)], torch.tensor([[[1.0, 3.0]]]))
        >>> values, rows.rows, rows.gradients
        (tensor([4.]), tensor([1]), tensor([[[2., 6.]]]))
    """
    check_training(activations, rows_ujd, gradient_lpd)
    path = choose_path("decode_backward", activations.device)
    if path == "reference":
        return decode_backward_reference(activations, rows_ujd, gradient_lpd)
    value_gradients_n, touched = activations.values.new_empty(len(activations)), []
    for layer, rows in enumerate(rows_ujd):
        entries = layer_entries(activations, layer, activations.values, gradient_lpd[layer : layer + rows.shape[1]])
        products_n, gradients = layer_gradients(path, entries, len(rows), rows)
        value_gradients_n[activations.layer(layer)] = products_n
        touched.append(gradients)
    return value_gradients_n, touched


def decode_layer_backward(
    gradient_jpd: Tensor, positions_n: Tensor, features_n: Tensor, values_n: Tensor, rows_ujd: Tensor
) -> tuple[Tensor, RowGradients]:
    """Compute the gradients of one source layer's `decode_layer`, for passes that go layer by layer.

    Args:
        gradient_jpd: (J, P, D) float32, the gradient of its outputs.
        positions_n: (n,) int64 position of each entry, ascending.
        features_n: (n,) int64 feature of each entry: its row.
        values_n: (n,) float32 its activation.
        rows_ujd: (U, J, D) float32 decoder, as for `decode_backward`.

    Returns:
        The gradients of the activations, (n,) float32, and of the touched rows, (u, J, D).

    Raises:
        ValueError: A shape, dtype, device or stride does not fit; the message names the argument and what was expected.
    """
    n_entries, device = positions_n.numel(), gradient_jpd.device
    check_shape("gradient_jpd", gradient_jpd, ("J", "P", "D"))
    check_rowwise("gradient_jpd", gradient_jpd, device)
    check_index("positions_n", positions_n, ("n",), device)
    check_shape("values_n", values_n, (n_entries,))
    check_float("values_n", values_n, device, (torch.float32,))
    check_shape("rows_ujd", rows_ujd, ("U", gradient_jpd.shape[0], gradient_jpd.shape[2]))
    check_rowwise("rows_ujd", rows_ujd, device)
    check_row_index("features_n", features_n, n_entries, rows_ujd)
    path = choose_path("decode_layer_backward", device)
    entries = LayerEntries(positions_n, features_n, values_n, gradient_jpd)
    return layer_gradients("torch" if path == "reference" else path, entries, len(rows_ujd), rows_ujd)


def decode_backward_adam(
    activations: SparseActivations,
    rows_ujd: Sequence[Tensor],
    gradient_lpd: Tensor,
    moments: Sequence[RowMoments],
    adam: AdamStep,
) -> Tensor:
    """Compute the gradients of `decode` and apply those of the rows at once, in place, with Adam.

    The same as `decode_backward` followed by `adam_rows` for each layer, without a tensor of row gradients.

    Args:
        activations: N active entries.
        rows_ujd: The decoder of each layer, as for `decode_backward`; updated.
        gradient_lpd: (L, P, D) float32, the gradient of what `decode` returns.
        moments: The state of each layer's decoder; updated.
        adam: The settings of this step.

    Returns:
        The gradients of the activations, (N,) float32, with the rows as they were before the update.

    Raises:
        ValueError: As for `decode_backward`, or moments do not fit their rows.
    """
    check_training(activations, rows_ujd, gradient_lpd)
    check_all_moments("moments", moments, rows_ujd)
    path = choose_path("decode_backward_adam", activations.device)
    if path == "reference":
        value_gradients_n, touched = decode_backward_reference(activations, rows_ujd, gradient_lpd)
        for rows, gradients, state in zip(rows_ujd, touched, moments, strict=True):
            adam_rows(rows, gradients, state, adam)
        return value_gradients_n
    if path == "triton":
        from crosstrace.kernels.backward.rows_triton import products_triton, update_rows_triton
        from crosstrace.kernels.triton_parts import launching_on

        with launching_on(activations.device):
            value_gradients_n = products_triton(activations, rows_ujd, gradient_lpd)
            update_rows_triton(activations, activations.values, gradient_lpd, rows_ujd, moments, adam)
        return value_gradients_n
    value_gradients_n = activations.values.new_empty(len(activations))
    for layer, rows in enumerate(rows_ujd):
        entries = layer_entries(activations, layer, activations.values, gradient_lpd[layer : layer + rows.shape[1]])
        value_gradients_n[activations.layer(layer)] = update_layer(path, entries, rows, moments[layer], adam)
    return value_gradients_n


def layer_entries(activations: SparseActivations, layer: int, weights_n: Tensor, source_jpd: Tensor) -> LayerEntries:
    """Take one layer's entries with their weights and sources."""
    own = activations.layer(layer)
    return LayerEntries(activations.positions[own], activations.features[own], weights_n[own], source_jpd)


def check_training(activations: SparseActivations, rows_ujd: Sequence[Tensor], gradient_lpd: Tensor) -> None:
    """Check the arguments of a backward pass.

    Raises:
        ValueError: One does not fit.
    """
    used = [activations.features[activations.layer(layer)] for layer in range(activations.n_layers)]
    d_model, _ = check_rows(activations, rows_ujd, used)
    check_shape("gradient_lpd", gradient_lpd, (activations.n_layers, activations.n_positions, d_model))
    check_rowwise("gradient_lpd", gradient_lpd, activations.device)
    for layer, rows in enumerate(rows_ujd):
        check_rowwise(f"rows_ujd[{layer}]", rows, activations.device)


def check_rowwise(name: str, tensor: Tensor, device: torch.device) -> None:
    """Check for float32 on a device with a contiguous last dimension.

    Raises:
        ValueError: Dtype, device or stride differs.
    """
    check_float(name, tensor, device, (torch.float32,))
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}; expected 1 in the last dimension")


def check_all_moments(name: str, moments: Sequence[RowMoments], weights: Sequence[Tensor]) -> None:
    """Check the moments of every layer.

    Raises:
        ValueError: Their number, a shape, dtype, device or stride differs; they have one dtype.
    """
    if len(moments) != len(weights):
        raise ValueError(f"{name} has {len(moments)} layers; expected {len(weights)}, as the weights")
    dtype = moments[0].first.dtype if moments else torch.float32
    for layer, (state, weight) in enumerate(zip(moments, weights, strict=True)):
        check_moments(f"{name}[{layer}]", state, weight)
        for part, tensor in (("first", state.first), ("second", state.second)):
            if tensor.dtype != dtype:
                raise ValueError(
                    f"{name}[{layer}].{part} has dtype {tensor.dtype}; expected {dtype}, as {name}[0].first"
                )
            if tensor.ndim > 1 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
                raise ValueError(
                    f"{name}[{layer}].{part} has strides {tensor.stride()}; expected 1 in the last dimension"
                )
