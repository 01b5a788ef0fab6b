"""The processes of a run: one by itself, or several that `torchrun` or `accelerate launch` started together.

The base model's passes are divided among them, whose results all of them get; the dictionary's steps, which are the smaller
part where sparse kernels do them, each process computes alike. So no gradient is exchanged, and every process holds the same
weights to the bit: those of a single process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """This process among the others.

    Attributes:
        rank: Its number; 0 is the one that writes files.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @staticmethod
    def joined(device: torch.device) -> Team:
        """Join the processes that were started together, as the environment says; a team of one where there are none.

        Args:
            device: Where this process computes.

        Raises:
            ValueError: There are several, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Team()
        try:
            from accelerate import PartialState
        except ImportError:
            raise ValueError(
                "training in several processes needs accelerate; pip install 'crosstrace[places]'"
            ) from None
        state = PartialState(cpu=device.type == "cpu")
        return Team(state.process_index, state.num_processes)

    def told(self, value: Any) -> Any:
        """Return process 0's value in every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values, from_process=0)
        return values[0]

    def spread(self, tensor: Tensor, owner: int) -> None:
        """Give every process what one of them has in a tensor of the same shape, in place.

        Args:
            tensor: On the device of the process or on the CPU; contiguous.
            owner: The process that has it.
        """
        if self.size > 1:
            torch.distributed.broadcast(tensor, owner)
