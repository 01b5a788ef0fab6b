"""From an application to a process that listens: the socket first, so that a taken port is one clear line."""

from __future__ import annotations

import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence

import uvicorn

from crosstrace.tracer.server.app import create_app
from crosstrace.tracer.server.core.models import Served
from crosstrace.tracer.server.core.settings import ServeSettings

_GRACE_SECONDS = 5


def listen(
    listening: socket.socket, models: Sequence[Served], settings: ServeSettings, quiet: bool = False, show: bool = False
) -> None:
    """Serve until interrupted.

    Args:
        listening: What `bound` returned.
        models: What is served.
        settings: What it may do.
        quiet: Say only where it is.
        show: Open the page in the browser.

    Raises:
        OSError: The folder cannot be written to.
        ValueError: The folder's database is damaged.
    """
    app = create_app(models, settings)
    address = listening.getsockname()
    url = f"http://{_shown(settings.host)}:{address[1]}/"
    print(f"serving {', '.join(one.name for one in models)} at {url}", flush=True)
    if settings.secret is None and not quiet:
        print(f"graphs are kept in {settings.folder}")
        print(f"programs give the header x-secret-key: {app.state.service.access.token}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS, server_header=False
    )
    if show:
        threading.Timer(0.5, webbrowser.open, [url]).start()
    uvicorn.Server(config).run([listening])
    if not quiet:
        print("stopped", file=sys.stderr)


def bound(host: str, port: int) -> socket.socket:
    """Take a port, before seconds are spent on loading.

    Args:
        host: The address to listen on.
        port: 0 for a free one.

    Raises:
        OSError: It is taken or may not be used.
    """
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((bare, port))
    except OSError as problem:
        listening.close()
        raise OSError(f"cannot listen on {host}, port {port}: {problem.strerror or problem}") from None
    listening.listen(2048)
    listening.setblocking(False)
    return listening


def _shown(host: str) -> str:
    """A host as it is written in an address that opens here."""
    bare = host.strip("[]")
    if bare in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{bare}]" if ":" in bare else bare
