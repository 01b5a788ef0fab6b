"""`encode_backward`: from the gradients of some pre-activations to those of the encoder.

With `h[p, f] = <x[p], W[f]> + b[f]` (`crosstrace.kernels.encode`) and `g_i` the gradient of the pre-activation of entry i,
`d W[f] = Σ_i g_i x[p_i]` and `d b[f] = Σ_i g_i` over the entries i of feature f. Entries are those whose gradient is not zero:
the active ones and, for a straight-through estimator, those inside the threshold's window. The gradient of the inputs,
`d x[p] = Σ_i g_i W[f_i]`, is `decode` of the same entries with the values g and the rows W.

Letters: L layers, P positions, D width of an input, F features of a layer, N entries, u touched rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crosstrace.kernels.activations import SparseActivations
from crosstrace.kernels.backward.decoder import check_all_moments, check_rowwise, layer_entries
from crosstrace.kernels.backward.row_updates import AdamStep, RowGradients, RowMoments, adam_rows
from crosstrace.kernels.backward.rows import layer_gradients, update_layer
from crosstrace.kernels.checks import check_float, check_row_index, check_shape
from crosstrace.kernels.dispatch import choose_path


def encode_backward_reference(
    inputs_lpd: Tensor, entries: SparseActivations, gradient_n: Tensor
) -> list[tuple[RowGradients, RowGradients]]:
    """Compute the definition, one entry after the other."""
    found = []
    for layer in range(entries.n_layers):
        own = entries.layer(layer)
        used = entries.features[own]
        rows = used.unique()
        weights_ud = inputs_lpd.new_zeros(len(rows), inputs_lpd.shape[2])
        biases_u = inputs_lpd.new_zeros(len(rows))
        for position, feature, gradient in zip(entries.positions[own], used, gradient_n[own], strict=True):
            weights_ud[rows == feature] += gradient * inputs_lpd[layer, position]
            biases_u[rows == feature] += gradient
        found.append((RowGradients(rows, weights_ud), RowGradients(rows, biases_u)))
    return found


def encode_backward(
    inputs_lpd: Tensor, entries: SparseActivations, gradient_n: Tensor
) -> list[tuple[RowGradients, RowGradients]]:
    """Compute the gradients of the encoders and their biases, for the features that have entries.

    Args:
        inputs_lpd: (L, P, D) float32 inputs of the encoders; the last dimension contiguous.
        entries: N entries with a gradient; their values are not used.
        gradient_n: (N,) float32, the gradient of each entry's pre-activation.

    Returns:
        For each layer the gradients of the touched rows of the encoder, stored feature-major (F, D), and of their biases.

    Raises:
        ValueError: A shape, dtype, device or stride does not fit; the message names the argument and what was expected.

    Example:
        >>> entries = SparseActivations.from_indices(torch.tensor([[0, 0, 1]]), torch.tensor([2.0]), 1, 1)
        >>> [(weights, biases)] = encode_backward(torch.tensor([[[1.0, 3.0]]]), entries, torch.tensor([0.5]))
        >>> weights.rows, weights.gradients, biases.gradients
        (tensor([1]), tensor([[0.5000, 1.5000]]), tensor([0.5000]))
    """
    _check(inputs_lpd, entries, gradient_n)
    path = choose_path("encode_backward", entries.device)
    if path == "reference":
        return encode_backward_reference(inputs_lpd, entries, gradient_n)
    found = []
    for layer in range(entries.n_layers):
        own = entries.features[entries.layer(layer)]
        n_rows = int(own.max()) + 1 if path == "compiled" and len(own) else 0
        of_rows, of_biases = (
            layer_gradients(path, layer_entries(entries, layer, gradient_n, source_1pd), n_rows, None)[1]
            for source_1pd in (inputs_lpd[layer][None], _ones(entries)[:1])
        )
        found.append(
            (
                RowGradients(of_rows.rows, of_rows.gradients[:, 0]),
                RowGradients(of_biases.rows, of_biases.gradients[:, 0, 0]),
            )
        )
    return found


def encode_backward_adam(
    inputs_lpd: Tensor,
    entries: SparseActivations,
    gradient_n: Tensor,
    rows_fd: Sequence[Tensor],
    biases_f: Sequence[Tensor],
    moments: Sequence[RowMoments],
    bias_moments: Sequence[RowMoments],
    adam: AdamStep,
) -> None:
    """Compute the gradients of the encoders and apply them at once, in place, with Adam.

    The same as `encode_backward` followed by `adam_rows` for each weight and bias, without a tensor of row gradients.

    Args:
        inputs_lpd: (L, P, D) float32 inputs of the encoders.
        entries: N entries with a gradient; their values are not used.
        gradient_n: (N,) float32, the gradient of each entry's pre-activation.
        rows_fd: The encoder of each layer, (F, D) float32, the last dimension contiguous; updated.
        biases_f: Its bias, (F,) float32; updated.
        moments: The state of each encoder; updated.
        bias_moments: The state of each bias; updated.
        adam: The settings of this step.

    Raises:
        ValueError: As for `encode_backward`, or weights, biases or moments do not fit.
    """
    _check(inputs_lpd, entries, gradient_n)
    for name, weights in (("rows_fd", rows_fd), ("biases_f", biases_f)):
        if len(weights) != entries.n_layers:
            raise ValueError(f"{name} has {len(weights)} layers; expected {entries.n_layers}, as in entries")
    for layer, (rows, biases) in enumerate(zip(rows_fd, biases_f, strict=True)):
        check_shape(f"rows_fd[{layer}]", rows, ("F", inputs_lpd.shape[2]))
        check_rowwise(f"rows_fd[{layer}]", rows, entries.device)
        check_shape(f"biases_f[{layer}]", biases, rows.shape[:1])
        check_rowwise(f"biases_f[{layer}]", biases, entries.device)
        own = entries.features[entries.layer(layer)]
        check_row_index(f"entries.features of layer {layer}", own, len(own), rows)
    check_all_moments("moments", moments, rows_fd)
    check_all_moments("bias_moments", bias_moments, biases_f)
    path = choose_path("encode_backward_adam", entries.device)
    if path == "reference":
        for layer, (of_rows, of_biases) in enumerate(encode_backward_reference(inputs_lpd, entries, gradient_n)):
            adam_rows(rows_fd[layer], of_rows, moments[layer], adam)
            adam_rows(biases_f[layer], of_biases, bias_moments[layer], adam)
        return
    both = (
        (inputs_lpd, list(rows_fd), moments),
        (_ones(entries), [bias[:, None] for bias in biases_f], bias_moments),
    )
    for source_lpd, weights, states in both:
        rows_f1d = [weight[:, None] for weight in weights]
        of_one_target = [
            RowMoments(state.first.view(rows.shape), state.second.view(rows.shape), state.steps)
            for rows, state in zip(rows_f1d, states, strict=True)
        ]
        if path == "triton":
            from crosstrace.kernels.backward.rows_triton import update_rows_triton
            from crosstrace.kernels.triton_parts import launching_on

            with launching_on(entries.device):
                update_rows_triton(entries, gradient_n, source_lpd, rows_f1d, of_one_target, adam)
            continue
        for layer, (rows, state) in enumerate(zip(rows_f1d, of_one_target, strict=True)):
            update_layer(path, layer_entries(entries, layer, gradient_n, source_lpd[layer][None]), rows, state, adam)


def _ones(entries: SparseActivations) -> Tensor:
    """Make the sources of biases (L, P, 1), which are the weights of an input that is 1 everywhere."""
    return torch.ones(1, entries.n_positions, 1, device=entries.device).expand(entries.n_layers, -1, -1)


def _check(inputs_lpd: Tensor, entries: SparseActivations, gradient_n: Tensor) -> None:
    check_shape("inputs_lpd", inputs_lpd, (entries.n_layers, entries.n_positions, "D"))
    check_rowwise("inputs_lpd", inputs_lpd, entries.device)
    check_shape("gradient_n", gradient_n, (len(entries),))
    check_float("gradient_n", gradient_n, entries.device, (torch.float32,))
