"""Sizes of memory: how they are written, how much is free, and whether a failure means that it ran out."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
# The share of the free memory that plans use: other programs need some, and so does what is not counted.
_USABLE_SHARE = 0.8


def parse_bytes(size: int | str) -> int:
    """Read a size in bytes: a number, or text such as `"8GB"`, `"512 MiB"`, `"0.5g"`.

    Raises:
        ValueError: The size is neither, or not above 0; it is named.

    Example:
        >>> parse_bytes("1.5 GB")
        1500000000
    """
    if isinstance(size, int):
        value = size
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", size.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"memory budget {size!r} is not a size; write it as 8GB, 512MB or 16GiB")
        value = int(float(match[1]) * _UNITS[match[2]])
    if value <= 0:
        raise ValueError(f"memory budget {size!r} must be above 0; write it as 8GB, 512MB or 16GiB")
    return value


def format_bytes(n_bytes: float) -> str:
    """Write a size with at most three digits and powers of ten.

    Example:
        >>> format_bytes(3.2e9)
        '3.2 GB'
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            value = n_bytes / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes; on the CPU what the system could hand out, caches included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _group_limit())
    except OSError:
        pass
    return 8 * 10**9  # neither Linux nor a GPU: a modest guess


def usable_bytes(device: torch.device) -> int:
    """Return the memory in bytes that plans may use on a device if the user sets no budget."""
    return int(free_bytes(device) * _USABLE_SHARE)


def _group_limit() -> int:
    """What a container's control group leaves of its memory; a very large number without a group."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        # Page cache counts as used there but gives way.
        cached = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return int(limit) - used + int(cached.get("file", 0))
    except (OSError, ValueError):
        return 2**62


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a failure means that host or device memory ran out (torch's CPU allocator says so only in words)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def resident_bytes() -> int:
    """Return the host memory that this process holds now, in bytes, mapped file pages included; its peak if unknown."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Return the most host memory in bytes that this process has held so far, mapped file pages included."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
