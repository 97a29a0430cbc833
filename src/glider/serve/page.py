"""The page at `/`: one file that loads nothing from elsewhere."""

import secrets
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes() -> APIRouter:
    """The route."""
    router = APIRouter()
    html, css, js = (resources.files("glider.serve").joinpath(f"page.{kind}").read_text("utf8") for kind in _PARTS)
    page = html.replace("/*CSS*/", css).replace("/*JS*/", js)

    @router.get("/", include_in_schema=False)
    async def show() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        headers = {"Content-Security-Policy": _POLICY.format(nonce)}
        return HTMLResponse(page.replace("NONCE", nonce), headers=headers)

    return router


_PARTS = ("html", "css", "js")
