"""This file holds the page to chat with: files as they are, which browsers may neither frame nor mix with others.

The page needs no other host, and its addresses are relative: it works wherever a proxy has put the server.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["page_routes"]

_FOLDER = Path(__file__).parent / "page"
# Not asked of the system, whose registry may say otherwise.
_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
}


def page_routes() -> list[Route]:
    """The page at ``/``, and what it is made of below ``/page/``; each file is read once, here."""
    files = sorted(path for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES)
    return [
        _route("/" if path.name == "index.html" else f"/page/{path.name}", path) for path in files
    ]


def _route(address: str, path: Path) -> Route:
    content, media_type = path.read_bytes(), _MEDIA_TYPES[path.suffix]

    async def answer(request: Request) -> Response:
        del request
        return Response(content, media_type=media_type, headers=_HEADERS)

    return Route(address, answer, methods=["GET"])
