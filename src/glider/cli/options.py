"""Command-line options generated from a settings model: typed once, described once."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from pydantic_core import PydanticUndefined

from glider.config import Config

Settings = TypeVar("Settings", bound=Config)


def with_settings(settings: type[Settings], name: str = "config") -> Callable[[Callable], Callable]:
    """Replace the parameter `name` of a command by one option per field of a settings model."""

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != name]
        fields = [_option(field, info) for field, info in settings.model_fields.items()]

        def run(**arguments: Any) -> Any:
            chosen = {field: arguments.pop(field) for field in settings.model_fields}
            return command(**arguments, **{name: settings.parse(**chosen)})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        parameters = [*own, *fields]
        run.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _option(name: str, info: Any) -> inspect.Parameter:
    default = ... if info.default is PydanticUndefined else info.default
    flag = typer.Option(f"--{name.replace('_', '-')}", help=info.description)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=Annotated[info.annotation, flag],
    )
