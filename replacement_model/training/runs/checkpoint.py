"""Checkpoints: the one file from which a run continues, replaced as a whole."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosstrace.replacement_model.training.runs.files import write_whole

FILE = "checkpoint.pt"


def write_checkpoint(folder: Path, where: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write a checkpoint in place of the one before.

    Args:
        folder: The run's folder.
        where: Where the run is, ready for JSON.
        state: The tensors. They go to the file one by one, without a copy of all of them.

    Raises:
        OSError: It cannot be written; the one before is kept.
    """
    write_whole(folder / FILE, lambda file: torch.save({"where": json.dumps(where), "state": state}, file))


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return where the run is and its tensors, mapped from the file.

    Raises:
        ValueError: The file is damaged.
        FileNotFoundError: There is none.
    """
    path = folder / FILE
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return json.loads(content["where"]), content["state"]
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as problem:
        raise ValueError(f"{path} is damaged ({' '.join(str(problem).split())[:80]}); delete {folder}") from None


def is_finite(state: dict[str, Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor.sum())) for tensor in state.values() if tensor.is_floating_point())
