"""The site opens without a network: a build whose pages load anything from elsewhere fails."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

_LOADS = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)")


def on_post_build(config: MkDocsConfig) -> None:
    """Look through every page that was built."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := _LOADS.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.relative_to(config.site_dir)} loads {found[1]} from the network")
