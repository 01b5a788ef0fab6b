"""How latents of SAEs are referred to: `resid_post/12/417`, at a position `resid_post/12/417@7`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crosstrace.replacement_model.architectures.sites import Site
from crosstrace.replacement_model.dictionaries.saes import Saes

_LATENT = re.compile(r"\s*([a-z_]+)/(\d+)/(\d+)(?:@(-?\d+))?\s*")


@dataclass(frozen=True)
class LatentReference:
    """A latent of an SAE.

    Attributes:
        site: The site that its SAE reads and writes.
        layer: The layer; the deepest one of those that a crosscoder's latent reads.
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


def sae_of(latent: LatentReference, saes: Sequence[Saes]) -> Saes:
    """Return the SAE that a latent is of.

    Raises:
        ValueError: None of the SAEs has it, or several have its site and layer.
    """
    here = [sae for sae in saes if sae.reads is latent.site and latent.layer in sae.n_features]
    if not here:
        known = [f"{sae.reads.short_name}/{layer}" for sae in saes for layer in sae.layers]
        raise ValueError(
            f"{latent}: no SAE of {latent.site.short_name} at layer {latent.layer} is given; there {_are(known)}"
        )
    if len(here) > 1:
        raise ValueError(
            f"{latent}: several SAEs are of that site and layer, {here[0].name} and {here[1].name}; give one"
        )
    count = here[0].n_features[latent.layer]
    if not 0 <= latent.feature < count:
        raise ValueError(f"{latent}: {here[0].name} has latents 0 to {count - 1} at layer {latent.layer}")
    return here[0]


def _are(known: Sequence[str]) -> str:
    return (
        "are none (--sae names them)" if not known else f"{'is' if len(known) == 1 else 'are'} {', '.join(known[:8])}"
    )
