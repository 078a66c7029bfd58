"""The server behind a gateway: whom to believe, how many connections to keep, and when to ask once more."""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from neuralfuse.errors import ConfigError
from neuralfuse.serve.passing import Headers
from neuralfuse.serve.settings import Settings

_REST = 2.0
"""Seconds that a connection may rest: shorter than servers keep theirs (5 are usual), or one is closed just as it is
used again."""


def client_of(settings: Settings) -> httpx2.AsyncClient:
    """Return what asks the server.

    Raises:
        ConfigError: SSL_CERT_FILE or SSL_CERT_DIR name no certificates, and the server's is to be checked.
    """
    limits = httpx2.Limits(max_connections=settings.in_flight + 8, max_keepalive_connections=32, keepalive_expiry=_REST)
    nothing = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # one client's cookies are not another's
    verify: ssl.SSLContext | bool = True
    if settings.upstream.startswith("https"):
        try:
            verify = httpx2.create_ssl_context()  # by the environment, unlike proxies
        except OSError as error:
            raise ConfigError(f"SSL_CERT_FILE and SSL_CERT_DIR must name PEM certificates: {error}.") from error
    return httpx2.AsyncClient(timeout=settings.timeout, limits=limits, cookies=nothing, verify=verify, trust_env=False)


async def sent(
    client: httpx2.AsyncClient, method: str, url: httpx2.URL, content: bytes | None, headers: Headers
) -> httpx2.Response:
    """Ask; what only reads is asked once more where the server had closed the connection."""
    try:
        return await client.request(method, url, content=content, headers=headers)
    except httpx2.RemoteProtocolError:
        if method not in ("GET", "HEAD"):
            raise
        return await client.request(method, url, content=content, headers=headers)
