"""HTTP to the upstream server: certificates, connections, retries."""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from neuralfuse.errors import ConfigError
from neuralfuse.serve.forwarding import Headers
from neuralfuse.serve.settings import Settings

_KEEP_ALIVE = 2.0
"""Seconds that an idle connection is kept. Servers usually close theirs after 5; the gateway must do so first."""


def make_client(settings: Settings) -> httpx2.AsyncClient:
    """Return the HTTP client for the upstream server.

    Raises:
        ConfigError: the upstream is https, and SSL_CERT_FILE or SSL_CERT_DIR hold no certificates.
    """
    limits = httpx2.Limits(
        max_connections=settings.in_flight + 8, max_keepalive_connections=32, keepalive_expiry=_KEEP_ALIVE
    )
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # clients must not share cookies
    verify: ssl.SSLContext | bool = True
    if settings.upstream.startswith("https"):
        try:
            verify = httpx2.create_ssl_context()  # certificates from the environment, but no proxies
        except OSError as error:
            raise ConfigError(f"SSL_CERT_FILE and SSL_CERT_DIR must name PEM certificates: {error}.") from error
    return httpx2.AsyncClient(
        timeout=settings.timeout, limits=limits, cookies=no_cookies, verify=verify, trust_env=False
    )


async def send(
    client: httpx2.AsyncClient, method: str, url: httpx2.URL, content: bytes | None, headers: Headers
) -> httpx2.Response:
    """Send a request; retry GET and HEAD once if the server had closed the connection."""
    try:
        return await client.request(method, url, content=content, headers=headers)
    except httpx2.RemoteProtocolError:
        if method not in ("GET", "HEAD"):
            raise
        return await client.request(method, url, content=content, headers=headers)
