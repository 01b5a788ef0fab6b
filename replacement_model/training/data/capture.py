"""The base model as training sees it: what passes its sites, in its own dtype, and nothing computed beyond them.

Letters: B windows of a batch, W positions of the longest, D width of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosstrace.replacement_model.architectures.description import ModelDescription
from crosstrace.replacement_model.architectures.hooks import Hook, hooked
from crosstrace.replacement_model.architectures.loading import load_model
from crosstrace.replacement_model.architectures.sites import LayerSites, ModelSites, Site
from crosstrace.replacement_model.training.settings import TrainingSettings


class _ReadAllError(Exception):
    """Every wanted site of a pass has been read."""


@dataclass(frozen=True)
class Point:
    """Where one tensor is read.

    Attributes:
        name: The point below a layer, as the config of exported weights names it.
        module: Returns the module of a layer.
        reads_input: Whether the tensor is the module's argument rather than its output.
    """

    name: str
    module: Callable[[LayerSites], nn.Module]
    reads_input: bool = False

    @staticmethod
    def at(site: Site) -> Point:
        """Return the point of a site."""
        return Point(site.value, lambda layer: layer.module(site), site is Site.MLP_INPUT)


ATTENTION_HEADS = Point("self_attn.o_proj.input", lambda layer: layer.output, reads_input=True)
"""What the heads hand to the output projection: (H * head_dim) wide."""


def points_of(settings: TrainingSettings) -> tuple[Point, Point]:
    """Return where a dictionary reads and where it writes; SAEs write where they read."""
    if settings.kind != "sae":
        return Point.at(Site.MLP_INPUT_NORMED), Point.at(Site.MLP_OUTPUT)
    match settings.site:
        case "resid_post":
            point = Point.at(Site.RESIDUAL)
        case "mlp_out":
            point = Point.at(Site.MLP_OUTPUT)
        case "attn_out":
            point = ATTENTION_HEADS
    return point, point


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model.

    Attributes:
        module: The model, as `transformers` loaded it.
        tokenizer: Its tokenizer.
        sites: Its live modules.
        name: What the user called it.
    """

    module: nn.Module
    tokenizer: Any
    sites: ModelSites
    name: str

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        excluded_first: int | None = None,
    ) -> BaseModel:
        """Load a model.

        Args:
            source: A folder, a `.gguf` file, or `org/name` on the hub.
            device: Where it runs; None: a GPU if there is one.
            dtype: The dtype of its weights and arithmetic; None: as stored.
            excluded_first: How many first positions are left out; None: as the architecture says.

        Raises:
            ValueError: The architecture is not supported, the files are damaged, or there is no tokenizer.
            OSError: Something is missing or cannot be reached.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        module, tokenizer, description = load_model(str(source), dtype, place)
        if tokenizer is None:
            raise ValueError(f"model {source} has no tokenizer, so it cannot read a corpus")
        if excluded_first is not None:
            description = description.excluding(excluded_first)
        module.set_attn_implementation("sdpa")  # no probabilities are read here
        return cls(module, tokenizer, ModelSites(module, description), str(source))

    @property
    def description(self) -> ModelDescription:
        """The description of the model."""
        return self.sites.description

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.sites.embedding.get_parameter("weight").device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights and arithmetic."""
        return self.sites.embedding.get_parameter("weight").dtype

    def width(self, point: Point) -> int:
        """Return the width of a point."""
        sizes = self.description
        return sizes.n_heads * sizes.head_dim if point is ATTENTION_HEADS else sizes.d_model

    def read(
        self,
        tokens_bw: Tensor,
        points: Sequence[Point],
        layers: Sequence[int],
        sink: Callable[[int, int, Tensor], None],
    ) -> None:
        """Run windows through the model up to the last wanted site.

        Args:
            tokens_bw: (B, W) int64 token ids, padded on the right: attention is causal, so no real position sees it.
            points: What is read in each layer.
            layers: The layers, ascending.
            sink: Called as `sink(point, layer, value_bwd)`, both counted within what was asked for; values in the
                model's dtype.
        """
        missing = {(p, i) for p in range(len(points)) for i in range(len(layers))}

        def hook_of(p: int, i: int) -> Hook:
            def take(args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
                sink(p, i, args[0] if points[p].reads_input else output)
                missing.discard((p, i))
                if not missing:
                    raise _ReadAllError

            return take

        hooks = [
            (point.module(self.sites.layers[layer]), hook_of(p, i))
            for p, point in enumerate(points)
            for i, layer in enumerate(layers)
        ]
        with torch.no_grad(), hooked(hooks), suppress(_ReadAllError):
            self.sites.text_model(input_ids=tokens_bw.to(self.device), use_cache=False)
