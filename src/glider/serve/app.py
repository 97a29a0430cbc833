"""The application: every route over one service, behind the guards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from glider import __version__
from glider.errors import GliderError
from glider.serve import chat, completions, errors, status, tokens
from glider.serve.guards import Guards
from glider.serve.service import Service


def build(service: Service) -> Guards:
    """The ASGI application of a service; with its lifespan the service starts and stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(title="glider", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(errors.ApiError, errors.on_api_error)
    app.add_exception_handler(GliderError, errors.on_glider_error)
    app.add_exception_handler(RequestValidationError, errors.on_invalid)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    app.add_exception_handler(Exception, errors.on_crash)
    for part in (chat, completions, tokens, status):
        app.include_router(part.routes(service))
    return Guards(app, service.settings)
