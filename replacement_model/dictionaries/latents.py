"""How latents of SAEs are referred to: `resid_post/12/417`, at a position `resid_post/12/417@7`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crosstrace.replacement_model.architectures.sites import Site

_LATENT = re.compile(r"\s*([a-z_]+)/(\d+)/(\d+)(?:@(-?\d+))?\s*")


@dataclass(frozen=True)
class LatentReference:
    """A latent of an SAE.

    Attributes:
        site: The site that its SAE reads and writes.
        layer: The layer.
        feature: Its number in the layer.
        position: Where in the prompt; negative from its end; None where the context says.
    """

    site: Site
    layer: int
    feature: int
    position: int | None = None

    def __str__(self) -> str:
        at = "" if self.position is None else f"@{self.position}"
        return f"{self.site.short_name}/{self.layer}/{self.feature}{at}"


def parse_latent(text: str) -> LatentReference | None:
    """Read a latent as it is written; None for what is not written as one.

    Raises:
        ValueError: It is written as one, but there is no such site.

    Example:
        >>> parse_latent("resid_post/12/417@7").position
        7
    """
    if not (match := _LATENT.fullmatch(text)):
        return None
    site = Site.of_short_name(match[1])
    if site is None:
        known = ", ".join(site.short_name for site in Site)
        raise ValueError(f"{text.strip()}: there is no site {match[1]!r}; known are {known}")
    return LatentReference(site, int(match[2]), int(match[3]), None if match[4] is None else int(match[4]))
