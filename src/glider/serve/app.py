"""The application: all routes over one service, behind the guards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from glider import __version__
from glider.errors import GliderError
from glider.serve import changes, chat, completions, errors, page, paths, replies, responses, status, tokens
from glider.serve.guards import Guards
from glider.serve.hidden import without_directories
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

    routers = [part.routes(service) for part in (chat, completions, responses, tokens, status, changes)]
    known = paths.of_routers(routers)

    async def refused(request: Request, fault: Exception) -> JSONResponse:
        error = paths.error_of(fault, request, known)
        if isinstance(fault, GliderError):
            error.message = without_directories(service, error.message)
        service.metrics.refused(error)
        response = error.response
        response.headers.update(paths.headers_of(fault))
        return response

    app = FastAPI(
        title="glider", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=replies.FAULTS
    )
    app.router.redirect_slashes = False  # `paths.as_route` takes them
    for kind in (errors.ApiError, GliderError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)
    for router in routers:
        app.include_router(router)
    app.include_router(page.routes())
    if service.tracing is not None:
        service.tracing.instrument(app)
    return Guards(app, service)
