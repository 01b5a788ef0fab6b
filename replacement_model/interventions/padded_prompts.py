"""Local replacement models of several prompts side by side, padded to one length, with one or more rows per prompt.

Letters: B rows of a batch, G prompts, W positions of the longest prompt, X = B * W flattened, P positions of a prompt,
D d_model, n entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from crosstrace.replacement_model.interventions.edited_features import Entries, PassWindow
from crosstrace.replacement_model.local.local_model import LocalReplacementModel

Side = Literal["left", "right"]


class PaddedPrompts:
    """B rows, each holding one of G prompts.

    Attributes:
        locals_g: The G prompts.
        prompt_of_b: (B,) int64, the prompt of each row.
        width: The number of positions W.
        shift_b: (B,) int64, the index of the row's first token; 0 with padding on the right.
        real_bw: (B, W) bool, the positions that are not padding.
        window: The positions where features can be.
    """

    def __init__(self, locals_g: Sequence[LocalReplacementModel], prompt_of_b: Sequence[int], side: Side) -> None:
        self.locals_g = list(locals_g)
        device = locals_g[0].residuals_lpd.device
        self.prompt_of_b = torch.tensor(list(prompt_of_b), device=device)
        lengths_g = torch.tensor([local.n_positions for local in locals_g], device=device)
        self.width = int(lengths_g.max())
        self._shift_g = self.width - lengths_g if side == "left" else torch.zeros_like(lengths_g)
        self.shift_b = self._shift_g[self.prompt_of_b]
        position_bw = torch.arange(self.width, device=device) - self.shift_b[:, None]
        self.real_bw = (position_bw >= 0) & (position_bw < lengths_g[self.prompt_of_b][:, None])
        first_g = torch.tensor([local.description.excluded_first for local in locals_g], device=device)
        self.window = PassWindow(self.shift_b, self.real_bw & (position_bw >= first_g[self.prompt_of_b][:, None]))

    @property
    def n_rows(self) -> int:
        """The number of rows B."""
        return len(self.prompt_of_b)

    def slots(self, prompt: int) -> slice:
        """Return where the positions of a prompt lie within its rows."""
        start = int(self._shift_g[prompt])
        return slice(start, start + self.locals_g[prompt].n_positions)

    def stack(self, read: Callable[[LocalReplacementModel], Tensor], axes: tuple[int, ...] = (0,)) -> Tensor:
        """Stack one tensor per row, padded with zeros.

        Args:
            read: Takes the tensor from a prompt's local replacement model.
            axes: Its axes that run over positions; they are padded to W.

        Returns:
            (B, ...) float32.
        """
        parts = [read(local) for local in self.locals_g]
        if len(parts) == 1:
            return parts[0].float()[None].expand(self.n_rows, *parts[0].shape)
        shape = [self.width if axis in axes else size for axis, size in enumerate(parts[0].shape)]
        stacked = torch.zeros(len(parts), *shape, device=parts[0].device)
        for prompt, part in enumerate(parts):
            slots = self.slots(prompt)
            stacked[prompt][tuple(slots if axis in axes else slice(None) for axis in range(part.ndim))] = part.float()
        return stacked[self.prompt_of_b]

    def held(self, layer: int) -> Entries:
        """Return a layer's activations in the unchanged prompts, for every row."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for row, prompt in enumerate(self.prompt_of_b.tolist()):
            active = self.locals_g[prompt].activations
            entries = active.layer(layer)
            start = row * self.width + self.slots(prompt).start
            parts.append((active.positions[entries] + start, active.features[entries], active.values[entries]))
        where, features, values = (torch.cat(part) for part in zip(*parts, strict=True))
        return Entries(where, features, values)
