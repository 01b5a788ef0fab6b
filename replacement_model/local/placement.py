"""Where a local replacement model keeps what it needs, by the memory budget. A plan of a trace asks the same functions.

Letters: L layers, P positions, H heads.
"""

from __future__ import annotations

from crosstrace.replacement_model.architectures.description import ModelDescription


def folded_budget(budget: int) -> int:
    """Return the bytes that folded layers may take to be kept, an eighth of a budget; beyond it each batch makes them anew.

    Args:
        budget: Bytes for transcoder weights and rows.
    """
    return budget // 8


def attention_moves_to_host(description: ModelDescription, n_positions: int, device_type: str, budget: int) -> bool:
    """Return whether attention patterns are moved to host memory: on a GPU, where all layers' take over a quarter of it.

    Args:
        description: The model.
        n_positions: P, the length of the prompt.
        device_type: `cpu` or `cuda`.
        budget: Bytes for transcoder weights and rows.
    """
    n_bytes = 4 * description.n_layers * description.n_heads * n_positions**2
    return device_type != "cpu" and n_bytes > budget // 4
