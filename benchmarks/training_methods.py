"""A random transcoder in training, and the ways to make a step that are compared: ours, dense and ``embedding_bag``.

All ways make the same step on the same weights: encode, keep what passes the threshold, decode, the gradient of the squared
error, backward, Adam. Decoders lie (J, F, D); dense ways take block by block, the gradient of one block at a time.

Letters: L layers, P tokens of a batch, D d_model, F features of a layer, J layers a feature writes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from crosstrace.kernels import (
    AdamStep,
    RowMoments,
    SparseActivations,
    decode,
    decode_backward_adam,
    encode_backward_adam,
)


@dataclass
class Training:
    """Weights, moments and one batch; ``active`` features a token and layer.

    ``encodes`` leaves the encoder out where only a decoder block is measured.
    """

    n_layers: int
    n_tokens: int
    d_model: int
    n_features: int
    active: int
    device: torch.device
    moments_dtype: torch.dtype = torch.float32
    encodes: bool = True
    # so small a step that what is active stays so while steps are timed
    adam: AdamStep = field(default_factory=lambda: AdamStep(1e-7))

    def __post_init__(self) -> None:
        L, P, D, n = self.n_layers, self.n_tokens, self.d_model, self.n_features

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device)

        self.x_lpd, self.y_lpd = random(L, P, D), random(L, P, D)
        self.encoders_fd = [random(n, D).mul_(D**-0.5) for _ in range(L)]
        self.biases_f = [torch.zeros(n, device=self.device) for _ in range(L)]
        self.decoders_jfd = [random(L - layer, n, D).mul_(0.1) for layer in range(L)]
        self.thresholds = []
        for x_pd, w_fd in zip(self.x_lpd, self.encoders_fd, strict=True):
            highest = (x_pd @ w_fd.T).flatten().topk(self.active * P + 1).values
            self.thresholds.append(float(highest[-2:].mean()))
        moments = {
            "encoder": self.encoders_fd,
            "bias": self.biases_f,
            "decoder": [decoder.transpose(0, 1) for decoder in self.decoders_jfd],
        }
        self.moments = {
            name: [RowMoments.zeros_like(weight, self.moments_dtype) for weight in weights]
            for name, weights in moments.items()
        }
        self.activations = self.encode_sparsely()

    def copy(self) -> Training:
        """The same weights and batch, to be changed apart."""
        other = object.__new__(Training)
        other.__dict__ |= self.__dict__
        for name in ("encoders_fd", "biases_f", "decoders_jfd"):
            setattr(other, name, [weight.clone() for weight in getattr(self, name)])
        other.moments = {
            name: [RowMoments(s.first.clone(), s.second.clone(), s.steps.clone()) for s in states]
            for name, states in self.moments.items()
        }
        return other

    @property
    def n_parameters(self) -> int:
        return sum(weight.numel() for weight in (*self.encoders_fd, *self.biases_f, *self.decoders_jfd))

    @property
    def written(self) -> int:
        """Pairs of an active entry and a layer it writes to."""
        counts = self.activations.layer_offsets.diff().tolist()
        return sum(count * (self.n_layers - layer) for layer, count in enumerate(counts))

    def held_bytes(self) -> int:
        """Weights and moments."""
        return self.n_parameters * (4 + 2 * self.moments_dtype.itemsize)

    def encode_sparsely(self) -> SparseActivations:
        layers = []
        for layer, (w_fd, bias_f) in enumerate(zip(self.encoders_fd, self.biases_f, strict=True)):
            h_pf = torch.addmm(bias_f, self.x_lpd[layer], w_fd.T)
            positions, features = (h_pf > self.thresholds[layer]).nonzero(as_tuple=True)
            layers.append((positions, features, h_pf[positions, features]))
        return SparseActivations.from_layers(layers, self.n_tokens)

    def error_gradient(self, out_lpd: Tensor) -> Tensor:
        return (out_lpd - self.y_lpd).mul_(2 / self.n_tokens)


def sparse_step(training: Training) -> None:
    """Ours: lists of active features, Adam on the rows that were touched."""
    acts = training.encode_sparsely() if training.encodes else training.activations
    rows = [decoder.transpose(0, 1) for decoder in training.decoders_jfd]
    index = [acts.features[acts.layer(layer)] for layer in range(acts.n_layers)]
    gradient_lpd = training.error_gradient(decode(acts, rows, index))
    moments = training.moments
    values = decode_backward_adam(acts, rows, gradient_lpd, moments["decoder"], training.adam)
    if training.encodes:
        encode_backward_adam(
            training.x_lpd,
            acts,
            values,
            training.encoders_fd,
            training.biases_f,
            moments["encoder"],
            moments["bias"],
            training.adam,
        )


def dense_step(training: Training, dtype: torch.dtype) -> None:
    """Matrix products over all features in a dtype, torch's fused Adam on all float32 weights."""
    L, P, device = training.n_layers, training.n_tokens, training.device
    acts = training.activations
    active_lpf, inputs = [], training.x_lpd.to(dtype)
    for layer, (w_fd, bias_f) in enumerate(zip(training.encoders_fd, training.biases_f, strict=True)):
        if training.encodes:
            h_pf = torch.addmm(bias_f.to(dtype), inputs[layer], w_fd.to(dtype).T)
            active_lpf.append(h_pf * (h_pf > training.thresholds[layer]))
        else:
            own = acts.layer(layer)
            a_pf = torch.zeros(P, training.n_features, dtype=dtype, device=device)
            a_pf[acts.positions[own], acts.features[own]] = acts.values[own].to(dtype)
            active_lpf.append(a_pf)
    out_lpd = torch.zeros(L, P, training.d_model, dtype=dtype, device=device)
    for layer, decoder in enumerate(training.decoders_jfd):
        for j, w_fd in enumerate(decoder):
            out_lpd[layer + j].addmm_(active_lpf[layer], w_fd.to(dtype))
    gradient_lpd = training.error_gradient(out_lpd.float()).to(dtype)
    for layer, decoder in enumerate(training.decoders_jfd):
        active_pf = active_lpf[layer]
        values_pf = torch.zeros_like(active_pf)
        for j, w_fd in enumerate(decoder):
            values_pf.addmm_(gradient_lpd[layer + j], w_fd.to(dtype).T)
            block_fd = (active_pf.T @ gradient_lpd[layer + j]).float()
            fused_adam(training, "decoder", layer, w_fd, block_fd, j)
        if training.encodes:
            values_pf *= active_pf != 0
            fused_adam(training, "encoder", layer, training.encoders_fd[layer], (values_pf.T @ inputs[layer]).float())
            fused_adam(training, "bias", layer, training.biases_f[layer], values_pf.float().sum(0))


def embedding_bag_step(training: Training) -> None:
    """torch's sums of rows by index, one block at a time, and its fused Adam on all weights."""
    P, n_features = training.n_tokens, training.n_features
    acts = training.encode_sparsely() if training.encodes else training.activations
    out_lpd = torch.zeros_like(training.y_lpd)
    starts = acts.offsets.to(training.device)
    layers = []
    for layer, decoder in enumerate(training.decoders_jfd):
        own = acts.layer(layer)
        positions, features, values = (part[own].contiguous() for part in (acts.positions, acts.features, acts.values))
        starts_p = starts[layer * P : layer * P + P] - starts[layer * P]
        for j, w_fd in enumerate(decoder):
            out_lpd[layer + j] += F.embedding_bag(features, w_fd, starts_p, mode="sum", per_sample_weights=values)
        layers.append((positions, features, values, starts_p))
    gradient_lpd = training.error_gradient(out_lpd)
    for layer, decoder in enumerate(training.decoders_jfd):
        positions, features, values, starts_p = layers[layer]
        sorted_n, order = features.sort(stable=True)
        starts_f = torch.searchsorted(sorted_n, torch.arange(n_features, device=training.device))
        by_feature = positions[order]

        def summed(source_pd: Tensor, weights_n: Tensor, at: Tensor = by_feature, starts: Tensor = starts_f) -> Tensor:
            return F.embedding_bag(at, source_pd, starts, mode="sum", per_sample_weights=weights_n)

        value_gradients = torch.zeros_like(values)
        for j, w_fd in enumerate(decoder):
            value_gradients += torch.ops.aten._embedding_bag_per_sample_weights_backward(
                gradient_lpd[layer + j], w_fd, features, starts_p, positions, 0
            )
            fused_adam(training, "decoder", layer, w_fd, summed(gradient_lpd[layer + j], values[order]), j)
        if training.encodes:
            sorted_gradients = value_gradients[order]
            fused_adam(
                training,
                "encoder",
                layer,
                training.encoders_fd[layer],
                summed(training.x_lpd[layer], sorted_gradients),
            )
            ones_p1 = torch.ones(P, 1, device=training.device)
            fused_adam(training, "bias", layer, training.biases_f[layer], summed(ones_p1, sorted_gradients)[:, 0])


def fused_adam(
    training: Training, name: str, layer: int, weight: Tensor, gradient: Tensor, block: int | None = None
) -> None:
    """torch's Adam on a whole weight, by the kernel that its optimiser uses."""
    state, adam = training.moments[name][layer], training.adam
    first, second = state.first, state.second
    if block is not None:
        first, second = first[:, block], second[:, block]
    torch._fused_adam_(
        [weight],
        [gradient],
        [first],
        [second],
        [],
        [torch.ones((), device=training.device)],
        lr=adam.learning_rate,
        beta1=adam.beta1,
        beta2=adam.beta2,
        weight_decay=0.0,
        eps=adam.epsilon,
        amsgrad=False,
        maximize=False,
    )


Step = Callable[[Training], None]
STEPS: dict[str, Step] = {
    "sparse": sparse_step,
    "dense float32": lambda training: dense_step(training, torch.float32),
    "dense bfloat16": lambda training: dense_step(training, torch.bfloat16),
    "embedding_bag": embedding_bag_step,
}


def weights_of(training: Training) -> Iterator[tuple[str, Tensor]]:
    """Every weight with its name."""
    for name in ("encoders_fd", "biases_f", "decoders_jfd"):
        for layer, weight in enumerate(getattr(training, name)):
            yield f"{name}[{layer}]", weight
