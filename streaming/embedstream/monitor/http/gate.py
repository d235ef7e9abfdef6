"""Decide who may send a request, and how a browser may use the response."""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embedstream.config.sections.monitoring import MonitorConfig, is_loopback

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["OPEN_PATHS", "SECURITY_HEADERS", "Gate"]

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Paths that need no token: probes have none, and the responses say nothing about the data."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every response."""

_METHODS = ("GET", "HEAD", "POST")
# Of the path of a request; it may have 64 KiB.
_SHOWN = 200


class Gate:
    """An ASGI application in front of another: refuses requests, adds headers, logs exceptions.

    - Methods other than GET, HEAD and POST are refused; each route refuses those that it lacks.
    - At a loopback address the Host header must name this machine. A page of another site whose
      name was made to resolve to 127.0.0.1 (DNS rebinding) does not name it.
    - A POST from a page of another site is refused, and so is what such a page loads: a picture
      whose address is a search would start a process. Links from other sites are followed.
    - With a token, every path but `OPEN_PATHS` needs it.
    """

    def __init__(self, app: ASGIApp, config: MonitorConfig) -> None:
        self._app = app
        host, _ = config.address
        self._is_loopback = is_loopback(host)
        self._names = {host.lower(), "localhost"} if self._is_loopback else set()
        self._token = None if config.token is None else config.token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return
        is_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        refusal = self._refuse(scope, Headers(scope=scope))
        try:
            await (refusal or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            # A browser left in the middle of an upload.
            return
        except Exception:
            _log.warning("a request of %r failed", scope["path"][:_SHOWN], exc_info=True)
            if not is_begun:
                failed = PlainTextResponse("this failed; see the log\n", 500)
                await failed(scope, receive, send_with_headers)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to a request that is refused; None for any other."""
        from starlette.responses import PlainTextResponse

        if scope["method"] not in _METHODS:
            return PlainTextResponse("only GET and HEAD; POST to search\n", 405)
        host = headers.get("host", "")
        if self._is_loopback and not self._is_this_machine(host):
            return PlainTextResponse(
                "the Host header names another machine; ask for localhost or 127.0.0.1\n", 421
            )
        is_followed = scope["method"] != "POST" and _is_link(headers)
        if not is_followed and not _is_of_own_page(headers, host):
            return PlainTextResponse("a page of another site may not send this\n", 403)
        if scope["path"] in OPEN_PATHS or self._token is None:
            return None
        given = _read_token(headers.get("authorization", ""))
        # The comparison takes the same time wherever the first difference is.
        if hmac.compare_digest(given, self._token):
            return None
        return PlainTextResponse(
            "give monitor.token, as a Bearer token or as a password with any user name\n",
            401,
            headers={"WWW-Authenticate": 'Basic realm="embedstream", charset="UTF-8"'},
        )

    def _is_this_machine(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or is_loopback(name)


def _is_link(headers: Headers) -> bool:
    """Return whether a request is for a page, not for a part of one; as other programs ask."""
    return headers.get("sec-fetch-mode", "navigate") == "navigate"


def _is_of_own_page(headers: Headers, host: str) -> bool:
    """Return whether a request was not sent by a page of another site, as browsers say it.

    Behind a proxy the Host header may have another name than the page; only `Sec-Fetch-Site` tells.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _read_token(authorization: str) -> bytes:
    """Return the token of an Authorization header: a Bearer token, or Basic's password."""
    scheme, _, value = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip().encode()
        case "basic":
            try:
                return base64.b64decode(value, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return b""
    return b""
