"""Sending a graph to a signed URL, as Neuronpedia's graph server does; off unless the server was started with it.

A request names the URL, so this is where somebody might make the server talk to machines that only it can reach. Only https
on its usual port is spoken, to an address that is checked and then connected to by itself (a name that changes its
address in between gains nothing), and no redirect is followed.
"""

from __future__ import annotations

import gzip
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PORT = 443
_SECONDS = 60.0


def is_public(address: str) -> bool:
    """Say whether an address belongs to the public network."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and (inside := found.ipv4_mapped or found.sixtofour):
        found = inside
    return found.is_global and not found.is_multicast


@dataclass(frozen=True)
class Uploads:
    """How graphs are sent.

    Attributes:
        allowed: Whether they are at all.
        port: The one port that is spoken to.
        permits: Which addresses may be connected to.
        context: The TLS settings.
    """

    allowed: bool
    port: int = PORT
    permits: Callable[[str], bool] = is_public
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def check(self, url: str) -> None:
        """Find a URL that will not be spoken to, before anything is computed.

        Raises:
            ValueError: Uploads are off, or it is not an https URL of a public machine.
        """
        self._place(url)

    def _place(self, url: str) -> tuple[str, str, str]:
        """The host, the first address, and what to ask for."""
        if not self.allowed:
            raise ValueError("this server uploads nothing (start it with --allow-uploads); leave out signed_url")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or self.port
        except ValueError as problem:
            raise ValueError(f"signed_url cannot be read: {problem}") from None
        if parts.scheme != "https" or not host or parts.username is not None or port != self.port:
            raise ValueError("signed_url must be an https URL without user name, at the usual port")
        if any(ord(sign) <= 32 or ord(sign) >= 127 for sign in url):
            raise ValueError("signed_url holds characters that a URL cannot have")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise ValueError("the host of signed_url cannot be found") from None
        addresses = [str(place[4][0]) for place in found]
        if not addresses or not all(self.permits(address) for address in addresses):
            raise ValueError("signed_url leads to a machine that is not on the public network")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return host, addresses[0], target

    def put(self, url: str, content: bytes, compress: bool) -> None:
        """Send JSON.

        Args:
            url: Where to.
            content: The JSON.
            compress: Send it with gzip.

        Raises:
            ValueError: The URL may not be spoken to.
            OSError: It did not take the content; redirects count as that.
        """
        host, address, target = self._place(url)
        headers = {"Content-Type": "application/json"}
        if compress:
            content = gzip.compress(content, 6)
            headers["Content-Encoding"] = "gzip"
        connection = _Pinned(host, address, self.port, self.context)
        try:
            connection.request("PUT", target, content, headers)
            answer = connection.getresponse()
            answer.read(10_000)
        except (OSError, http.client.HTTPException) as problem:
            raise OSError(f"the upload failed: {type(problem).__name__}") from None
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise OSError(f"the upload failed: the host of signed_url answered {answer.status}")


class _Pinned(http.client.HTTPSConnection):
    """Speaks to one address, whatever the name leads to by now; the certificate has to be that of the name."""

    def __init__(self, host: str, address: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=_SECONDS, context=context)
        self._address, self._tls = address, context

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
