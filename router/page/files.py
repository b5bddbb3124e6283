"""The page's files, read once. They need no token: all that they show comes from the API."""

from __future__ import annotations

from importlib.resources import files

from baton.http.response import HttpResponse

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Everything comes from this origin; no inline scripts or styles; no other site may frame the page.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_files() -> dict[str, HttpResponse]:
    """By path: "/" is the page, and its other files lie beside it."""
    found = {}
    for file in files("baton.router.page").joinpath("static").iterdir():
        name, _, ending = file.name.rpartition(".")
        if f".{ending}" in TYPES:
            path = "/" if name == "index" else f"/{file.name}"
            found[path] = HttpResponse(200, {"content-type": TYPES[f".{ending}"], **HEADERS}, file.read_bytes())
    return found
