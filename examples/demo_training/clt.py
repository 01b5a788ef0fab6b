"""Train the demo's cross-layer transcoder, with crosstrace's own trainer, on cached activations.

Two things are the demo's alone. Every activation is in memory, once for each distinct beginning of a sentence, and is drawn
in proportion to how many sentences share it, to the power `DRAWN_BY`. And before the last stretch the features that are
missed least are dropped. All the rest is the recipe `clt.toml`, beside this file.

Letters: L layers, N positions, B positions of a batch, F features of a layer, K of them that are kept, D d_model.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from crosstrace.kernels import decode_backward
from crosstrace.replacement_model.training.core import StepMetrics, Trainer
from crosstrace.replacement_model.training.evaluation import reconstruct
from crosstrace.replacement_model.training.parameters import DictionaryShape
from crosstrace.replacement_model.training.settings import TrainingSettings

RECIPE = Path(__file__).with_suffix(".toml")
KEPT = 512  # of the features of the recipe
DROPPED_AT = 0.6  # as a share of the run
DRAWN_BY = 0.6  # beginnings that many sentences share are drawn more often, but not so often that the rest is drowned
TOLD_EVERY = 250  # steps


@dataclass(frozen=True)
class Cached:
    """Raw activations `inputs` and `outputs` (L, N, D), of which row n is drawn in proportion to `weights` (N,)."""

    inputs: Tensor
    outputs: Tensor
    weights: Tensor

    def draw(self, n_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.multinomial(self.weights, n_rows, replacement=True, generator=generator)
        return self.inputs[:, rows], self.outputs[:, rows]

    def parts(self, n_rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return zip(self.inputs.split(n_rows, 1), self.outputs.split(n_rows, 1), self.weights.split(n_rows), strict=True)


def train_clt(
    inputs: Tensor, outputs: Tensor, counts: Tensor, settings: TrainingSettings, report: Callable[[str], None] = print
) -> Trainer:
    """Train on raw activations (L, N, D), of which row n stands for `counts[n]` (N,) positions."""
    cached = Cached(inputs, outputs, counts.pow(DRAWN_BY))
    generator = torch.Generator().manual_seed(settings.seed)
    n_layers, _, width = inputs.shape
    shape = DictionaryShape("clt", settings.site, tuple(range(n_layers)), settings.features, width, width)
    trainer = Trainer(settings, shape, cached.draw(settings.statistics_tokens, generator))
    steps, begun, recent = settings.tokens // settings.batch_tokens, time.perf_counter(), list[StepMetrics]()
    for number in range(steps):
        if number == round(DROPPED_AT * steps):
            trainer = keep_features(trainer, missed_most(trainer, cached, KEPT))
        recent.append(trainer.step(*cached.draw(settings.batch_tokens, generator), number / steps))
        if (number + 1) % TOLD_EVERY == 0 or number + 1 == steps:
            fvu, l0, dead = (
                torch.stack([getattr(seen, of) for seen in recent]).mean() for of in ("fvu_l", "l0_l", "dead_l")
            )
            report(
                f"  step {number + 1:5d}  unexplained {fvu:.4f}  active a layer and position {l0:5.2f}  dead {dead:.3f}"
                f"  restarted {sum(seen.resets for seen in recent)}  {time.perf_counter() - begun:.0f} s"
            )
            recent.clear()
    return trainer


def missed_most(trainer: Trainer, cached: Cached, n_kept: int) -> Tensor:
    """The features (L, K), ascending, without which, each taken alone, the squared error would grow the most."""
    scaling, norms_lf = trainer.normalisation, trainer.parameters.decoder_norms()
    growth_lf = torch.zeros_like(norms_lf)
    for inputs, outputs, weights_b in cached.parts(4096):
        active, reconstructed_lbd = reconstruct(trainer, inputs)
        errors_lbd = (outputs - reconstructed_lbd) * scaling.scale_out_ld[:, None]
        along_n, _ = decode_backward(active, trainer.parameters.rows_ujd(), errors_lbd)
        # |e + a w|^2 - |e|^2, with w what a feature writes and e what all of them leave of the output.
        of = (active.layers, active.features)
        growth_n = (active.values * norms_lf[of]).square() + 2 * active.values * along_n
        growth_lf.index_put_(of, weights_b[active.positions] * growth_n, accumulate=True)
    return growth_lf.topk(n_kept, dim=1).indices.sort(dim=1).values


def keep_features(trainer: Trainer, kept_lk: Tensor) -> Trainer:
    """A trainer with some features of each layer, and everything that is remembered of them."""
    shape, n_kept = trainer.shape, kept_lk.shape[1]
    smaller = Trainer(trainer.settings.changed(features=n_kept), replace(shape, n_features=n_kept), None)
    state = trainer.state()
    for name, tensor in state.items():
        if tensor.shape == (shape.n_layers, shape.n_features):
            state[name] = tensor.gather(1, kept_lk)
        elif shape.n_features in tensor.shape:  # of one layer, which the name tells
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            state[name] = tensor.index_select(tensor.shape.index(shape.n_features), kept_lk[layer])
    smaller.restore(state)
    return smaller
