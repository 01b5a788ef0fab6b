"""Gradients of some rows of a weight, and Adam on these rows alone.

Adam is Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1. Here every row has a clock of its own: a
row without a gradient is left as it is, weights and moments, and its step does not count. Each row therefore goes
through Adam on the sequence of its own gradients, as if the steps in between had not been. A sparse feature's update then does
not depend on how often the others fire, its moments do not fade while it is silent, and no dense pass has to decay them.

Letters: F features of a layer, U stored rows, u touched rows, J layers a feature writes to, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crosstrace.kernels.checks import check_float, check_index, check_shape

MOMENT_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class RowGradients:
    """Gradients of the rows of one layer's weight that entries touched; those of all other rows are zero.

    Attributes:
        rows: (u,) int64, the touched rows, ascending.
        gradients: (u, J, D) float32 for a decoder, (u, D) for an encoder, (u,) for a bias.
    """

    rows: Tensor
    gradients: Tensor

    def to_dense(self, n_rows: int) -> Tensor:
        """Return the gradients of all `n_rows` rows, float32."""
        return self.gradients.new_zeros(n_rows, *self.gradients.shape[1:]).index_copy_(0, self.rows, self.gradients)


@dataclass(frozen=True, eq=False)
class RowMoments:
    """Adam's state of one layer's weight, updated in place.

    Attributes:
        first: The mean of the gradients, shaped like the weight; float32 or bfloat16.
        second: The mean of their squares, likewise. In bfloat16 a mean moves only where the change is more than 0.4 % of
            it, so it wants a `beta2` of 0.99 or less.
        steps: (U,) int32, how often each row was updated.
    """

    first: Tensor
    second: Tensor
    steps: Tensor

    @staticmethod
    def zeros_like(weight: Tensor, dtype: torch.dtype = torch.float32) -> RowMoments:
        """Make the state before the first step, laid out in memory as the weight is."""
        first, second = (torch.zeros_like(weight, dtype=dtype) for _ in range(2))
        return RowMoments(first, second, torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device))

    def step(self, rows: Tensor, adam: AdamStep) -> tuple[Tensor, Tensor]:
        """Count a step of some rows, (u,) int64, and correct the bias of their moments.

        Returns:
            (u,) float32 learning rates, divided by what the first moment's bias is, and (u,) float32 factors of the second
            moment's root.
        """
        self.steps[rows] += 1
        steps_u = self.steps[rows].double()
        sizes_u, roots_u = adam.learning_rate / (1 - adam.beta1**steps_u), (1 - adam.beta2**steps_u).rsqrt()
        return sizes_u.float(), roots_u.float()

    def forget(self, rows: Tensor) -> None:
        """Set some rows back to the state before the first step, as for features that start anew; rows (n,) int64."""
        for state in (self.first, self.second, self.steps):
            state[rows] = 0


@dataclass(frozen=True)
class AdamStep:
    """The settings of one step of Adam. A row's own `RowMoments.steps` corrects the bias of its moments.

    Attributes:
        learning_rate: The step size.
        beta1: The decay of the first moment.
        beta2: The decay of the second moment.
        epsilon: Added to the root of the second moment.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8


def check_moments(name: str, moments: RowMoments, weight: Tensor) -> None:
    """Check that moments belong to a weight.

    Raises:
        ValueError: A shape, dtype or device differs.
    """
    for part, state in (("first", moments.first), ("second", moments.second)):
        check_shape(f"{name}.{part}", state, weight.shape)
        check_float(f"{name}.{part}", state, weight.device, MOMENT_DTYPES)
    if moments.second.stride() != moments.first.stride() and moments.first.numel():
        raise ValueError(
            f"{name}.second has strides {moments.second.stride()}; expected {moments.first.stride()}, as {name}.first"
        )
    check_shape(f"{name}.steps", moments.steps, weight.shape[:1])
    if moments.steps.dtype != torch.int32 or moments.steps.device != weight.device:
        raise ValueError(
            f"{name}.steps has dtype {moments.steps.dtype} on {moments.steps.device}; expected int32 on {weight.device}"
        )


def adam_rows(weight: Tensor, touched: RowGradients, moments: RowMoments, adam: AdamStep) -> None:
    """Update the touched rows of a weight and their moments, in place.

    Args:
        weight: (U, J, D), (U, D) or (U,) float32.
        touched: The gradients of some of its rows.
        moments: Its state.
        adam: The settings of this step.

    Raises:
        ValueError: A shape, dtype or device does not fit; the message names the argument and what was expected.

    Example:
        >>> weight = torch.zeros(3)
        >>> moments = RowMoments.zeros_like(weight)
        >>> adam_rows(weight, RowGradients(torch.tensor([1]), torch.tensor([5.0])), moments, AdamStep(0.5))
        >>> weight
        tensor([ 0.0000, -0.5000,  0.0000])
    """
    check_float("weight", weight, weight.device, (torch.float32,))
    check_index("touched.rows", touched.rows, ("u",), weight.device)
    check_shape("touched.gradients", touched.gradients, (len(touched.rows), *weight.shape[1:]))
    check_float("touched.gradients", touched.gradients, weight.device, (torch.float32,))
    check_moments("moments", moments, weight)
    rows, gradients = touched.rows, touched.gradients
    if not len(rows):
        return
    sizes_u, roots_u = (of_u.view(-1, *[1] * (weight.ndim - 1)) for of_u in moments.step(rows, adam))
    first = moments.first[rows].float().lerp_(gradients, 1 - adam.beta1)
    second = moments.second[rows].float().mul_(adam.beta2).addcmul_(gradients, gradients, value=1 - adam.beta2)
    # the moments are used as they are before they are rounded to their dtype
    weight[rows] -= sizes_u * first / (second.sqrt() * roots_u + adam.epsilon)
    moments.first[rows] = first.to(moments.first.dtype)
    moments.second[rows] = second.to(moments.second.dtype)
