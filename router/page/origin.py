"""Whether a browser's request comes from the page itself. Pure.

A browser sends requests for any site that it shows, with this machine's reach. Pages of other sites can send neither
JSON nor from our origin, and cannot read answers. A site whose name was rebound to a loopback address gives its own
name as the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from baton.http.response import JSON
from baton.protocol.address import is_loopback, split
from baton.protocol.errors import InvalidRequest, PermissionDenied

READS = ("GET", "HEAD")


def check_host(headers: Mapping[str, str]) -> None:
    """Raise `PermissionDenied` unless the client asked this machine by its own name."""
    host = headers.get("host", "")
    if not is_loopback(split(host)[0]):
        raise PermissionDenied(f"This port serves its own machine, as localhost, not as {host[:100]!r}.")


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """Raise `PermissionDenied` for a request that another site's page sends, `InvalidRequest` for a body but JSON."""
    site, origin = headers.get("sec-fetch-site", "same-origin"), headers.get("origin")
    if site not in ("same-origin", "none"):
        raise PermissionDenied("Pages of other sites may not use this API.")
    if method in READS:
        return
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise PermissionDenied("Pages of other sites may not use this API.")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise InvalidRequest(f"The body must be JSON: send content-type: {JSON}.")
