"""What a run tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crosstrace.replacement_model.training.runs.record import TrainingRecord


@dataclass(frozen=True)
class Progress:
    """Where a run is, after a step.

    Attributes:
        stage: `training` or `end to end`.
        share: How much of the stage is done, from 0 to 1.
        step: Steps of the stage so far.
        tokens: Tokens of the stage so far.
        wanted_tokens: Tokens that the stage will have, or None where the clock decides.
        seconds: Seconds of the run so far, those before it was resumed included.
        left_seconds: Estimated seconds until the run ends, or None.
        loss: The step's loss.
        fvu: Fraction of variance unexplained, the mean over layers.
        fvu_weighted: The same weighted by dimension.
        l0: Active features for each token and layer, the mean over layers.
        dead: The share of dead features, the mean over layers.
    """

    stage: str
    share: float
    step: int
    tokens: int
    wanted_tokens: int | None
    seconds: float
    left_seconds: float | None
    loss: float
    fvu: float | None
    fvu_weighted: float | None
    l0: float | None
    dead: float | None


class Watcher:
    """Hears what a run tells. This one says nothing."""

    def began(self, record: TrainingRecord, resumed_at: int | None) -> None:
        """Hear that the run begins, or goes on after this many tokens."""

    def filling(self, done: int, total: int) -> None:
        """Hear how many positions of the activation buffer are filled."""

    def stepped(self, progress: Progress) -> None:
        """Hear of a step."""

    def notice(self, line: str) -> None:
        """Hear something that is not as it may seem."""

    def saved(self, path: Path) -> None:
        """Hear that a checkpoint was written."""

    def stop_asked(self) -> bool:
        """Whether the run should stop after this step, with a checkpoint."""
        return False
