"""How a prompt is traced, whoever asks for it: `crosstrace trace` for one, `crosstrace sweep` for many."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from crosstrace.graphs import AttributionGraph, check_threshold, prune, without_template
from crosstrace.graphs.analysis.defaults import EDGE_THRESHOLD, NODE_THRESHOLD
from crosstrace.replacement_model import ReplacementModel
from crosstrace.replacement_model.dictionaries.saes import Saes
from crosstrace.replacement_model.prompts import Prompt
from crosstrace.tracer import defaults
from crosstrace.tracer.attention.ranking import with_attention
from crosstrace.tracer.attribution.targets import TargetSpec
from crosstrace.tracer.attribution.tracing import trace
from crosstrace.tracer.cards.naming import with_guesses
from crosstrace.tracer.reading.written_latents import with_written_latents

# Guesses for the strongest features that pruning drops: `show --feature` and `compare` show some of them.
_ALSO_NAMED = 100


@dataclass(frozen=True)
class TraceSettings:
    """Everything about a trace but the prompt and the model.

    Attributes:
        targets: What to explain; none for the most probable tokens.
        max_logits: The most tokens to explain where no targets are named.
        logit_probability: The probability they should reach together.
        max_feature_nodes: The most features that get a row; None for the default.
        batch_size: Rows computed at a time; None for what memory allows.
        position: Where targets without a position of their own are read.
        node_threshold: Share of the influence that pruning keeps.
        edge_threshold: Share of the edges' scores that pruning keeps.
        attention: Keep which head carried each edge.
        hide_template: Leave out what stands at the chat template's tokens.
    """

    targets: tuple[TargetSpec, ...] = ()
    max_logits: int = defaults.MAX_LOGITS
    logit_probability: float = defaults.LOGIT_PROBABILITY
    max_feature_nodes: int | None = None
    batch_size: int | None = None
    position: int = -1
    node_threshold: float = NODE_THRESHOLD
    edge_threshold: float = EDGE_THRESHOLD
    attention: bool = False
    hide_template: bool = False

    def __post_init__(self) -> None:
        check_threshold("node_threshold", self.node_threshold)
        check_threshold("edge_threshold", self.edge_threshold)

    def trace(
        self,
        model: ReplacementModel,
        prompt: Prompt,
        saes: Sequence[Saes] = (),
        progress: bool | None = None,
        note: Callable[[str], None] | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> AttributionGraph:
        """Trace a prompt; see `crosstrace.tracer.trace` for what it raises.

        Args:
            model: The replacement model.
            prompt: The prompt.
            saes: SAEs in use whose latents may be targets.
            progress: Show a progress bar; None: on a terminal.
            note: Called with what is probably not meant.
            checkpoint: A file that keeps rows; it is left for the caller to delete.
            resume: Continue from the checkpoint.

        Returns:
            The whole graph, not pruned.
        """
        return trace(
            model,
            prompt,
            targets=list(self.targets) or None,
            max_logits=self.max_logits,
            logit_probability=self.logit_probability,
            max_feature_nodes=self.max_feature_nodes,
            batch_size=self.batch_size,
            position=self.position,
            progress=progress,
            checkpoint=checkpoint,
            resume=resume,
            keep_checkpoint=True,
            note=note,
            saes=saes,
        )

    def finish(
        self,
        graph: AttributionGraph,
        model: ReplacementModel,
        saes: Sequence[Saes] = (),
        progress: bool | None = None,
        named: Container[tuple[int, int]] = (),
    ) -> AttributionGraph:
        """Return the graph pruned, its features named, with what else the settings ask for.

        Args:
            graph: As `trace` returns it.
            model: The replacement model that it was traced in.
            saes: SAEs in use: the latents that features write to are kept.
            progress: Show a progress bar; None: on a terminal.
            named: (layer, feature) of features that need no guess at their names, such as those with a card.
        """
        pruned = with_guesses(
            prune(graph, self.node_threshold, self.edge_threshold), model, beyond_kept=_ALSO_NAMED, named=named
        )
        if self.attention:
            pruned = with_attention(pruned, model, progress=progress)
        if saes:
            pruned = with_written_latents(pruned, model, saes)
        return without_template(pruned) if self.hide_template else pruned
