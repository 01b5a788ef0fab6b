"""The errors of a pass: what becomes of the part of the MLP outputs that transcoders miss.

- `frozen`: the vectors of the unchanged prompt, as in the local replacement model (Ameisen et al. 2025, "Circuit
  Tracing", section "The Local Replacement Model");
- `recomputed`: the model's own MLPs run, and what interventions change in features is added to their output;
- `dropped`: left out, as in the replacement model;
- `replaced`: given vectors in their place.

Letters: B rows of a batch, W positions of the longest prompt, P positions of a prompt, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crosstrace.replacement_model.interventions.edited_features import EditTable
from crosstrace.replacement_model.interventions.edits import Edits
from crosstrace.replacement_model.interventions.freeze import Errors, Freeze
from crosstrace.replacement_model.interventions.padded_prompts import PaddedPrompts
from crosstrace.replacement_model.local.local_model import LocalReplacementModel


@dataclass(frozen=True, eq=False)
class HeldErrors:
    """How a pass treats errors; see the module.

    Attributes:
        kind: The treatment.
        vectors_lpd: (L, P, D) float32 the vectors of `replaced`; None for the others.
    """

    kind: Literal["frozen", "recomputed", "dropped", "replaced"]
    vectors_lpd: Tensor | None = None

    @staticmethod
    def parse(errors: Errors | Tensor) -> HeldErrors:
        """Read the treatment as users give it: a name, or vectors (L, P, D) to replace the errors.

        Raises:
            ValueError: The name is unknown.
        """
        if isinstance(errors, Tensor):
            return HeldErrors("replaced", errors)
        if errors not in ("frozen", "recomputed", "dropped"):
            raise ValueError(f"unknown errors {errors!r}: known are frozen, recomputed, dropped, or vectors (L, P, D)")
        return HeldErrors(errors)

    def check_freeze(self, freeze: Freeze) -> None:
        """Check that errors can be treated so under a freeze.

        Raises:
            ValueError: The model's own MLPs would have to run, and the freeze does not run them.
        """
        if self.kind == "recomputed" and freeze.norms:
            raise ValueError(
                f"errors are recomputed by the model's own MLPs, and a {freeze.name} pass with frozen norms does not "
                "run them; free the norms, or freeze or drop the errors"
            )

    def check_edits(self, edits_b: Sequence[Edits]) -> None:
        """Check that single errors are intervened on only where they are frozen.

        Raises:
            ValueError: An edit names an error of another treatment.
        """
        if self.kind != "frozen" and any(edits.errors for edits in edits_b):
            raise ValueError(f"errors can be intervened on only where they are frozen; here they are {self.kind}")
        if self.kind == "recomputed" and any(edits.directions for edits in edits_b):
            raise ValueError(
                "directions are added beside the errors, which must not be recomputed; freeze or drop them"
            )

    def check_prompt(self, local: LocalReplacementModel) -> None:
        """Check that given vectors fit a prompt.

        Raises:
            ValueError: Their shape is not the (L, P, D) of the prompt.
        """
        if self.vectors_lpd is not None and self.vectors_lpd.shape != local.errors_lpd.shape:
            shape, expected = tuple(self.vectors_lpd.shape), tuple(local.errors_lpd.shape)
            raise ValueError(f"errors have shape {shape}; expected {expected}")

    def change(self, prompts: PaddedPrompts, edits: EditTable, layer: int) -> Tensor:
        """Compute what a pass adds to the unchanged prompts' errors of a layer, directions that are steered along included.

        Args:
            prompts: The B rows.
            edits: Their edits; those of single errors are applied.
            layer: The layer whose MLP output the errors belong to.

        Returns:
            (B, W, D) float32.
        """
        some = prompts.locals_g[0].errors_lpd
        if self.vectors_lpd is not None:
            wanted_pd = self.vectors_lpd.to(some.device)[layer]
            change_bwd = prompts.stack(lambda m: wanted_pd - m.errors_lpd[layer])
        elif self.kind == "dropped":
            change_bwd = prompts.stack(lambda m: -m.errors_lpd[layer])
        else:
            change_bwd = torch.zeros(prompts.n_rows, prompts.width, some.shape[-1], device=some.device)
        for row, edit in enumerate(edits.edits):
            if not edit.errors and not edit.directions:
                continue
            prompt = int(prompts.prompt_of_b[row])
            for (at, position), factor in edit.errors.items():
                if at == layer:
                    vector_d = prompts.locals_g[prompt].errors_lpd[layer, position]
                    change_bwd[row, prompts.slots(prompt).start + position] += (factor - 1) * vector_d
            for (at, position), added_d in edit.directions.items():
                if at == layer:
                    change_bwd[row, prompts.slots(prompt).start + position] += added_d.to(change_bwd)
        return change_bwd
