"""What a server may do, said once when it starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from crosstrace.tracer import defaults

_LOCAL_NAMES = {"localhost", "ip6-localhost"}

BODY_BYTES = 1_000_000
"""The largest body of a request."""
EDITS = 50
"""The most interventions of one request; each may name up to `MEMBERS` features."""
MEMBERS = 1000


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine alone."""
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may wait.

    Attributes:
        prompt_tokens: Tokens of a prompt, a conversation, or one that features are taken from.
        feature_nodes: Features of a graph that get a row.
        new_tokens: Tokens to generate.
        queue: Requests that wait while another runs.
    """

    prompt_tokens: int = defaults.SERVE_PROMPT_TOKENS
    feature_nodes: int = defaults.SERVE_FEATURE_NODES
    new_tokens: int = defaults.SERVE_NEW_TOKENS
    queue: int = defaults.SERVE_QUEUE


@dataclass(frozen=True)
class ServeSettings:
    """Everything that is named when a server starts; no request changes it.

    Attributes:
        folder: Holds the database of graphs, and nothing else.
        host: The address that it listens on.
        secret: What `x-secret-key` has to be; None: the page's own token alone counts, and reading needs neither.
        hosts: Further names that a `Host` header may have, such as the server's name in a network.
        kept_bytes: Graphs beyond this size are dropped, the oldest first.
        allow_uploads: Whether `/generate-graph` may send a graph to a signed URL.
        cards: A file of feature cards; None for those beside the transcoders.
        limits: What one request may ask for.
    """

    folder: Path
    host: str = "127.0.0.1"
    secret: str | None = None
    hosts: tuple[str, ...] = ()
    kept_bytes: int = 2_000_000_000
    allow_uploads: bool = False
    cards: Path | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.secret is not None and len(self.secret) < 8:
            raise ValueError("the secret has fewer than 8 characters; anybody could guess it")
        if not is_loopback(self.host) and self.secret is None:
            raise ValueError(
                f"host {self.host} can be reached from other machines: that needs a secret (--secret), "
                "which every request has to give"
            )
