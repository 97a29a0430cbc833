"""Command-line options generated from a settings model: typed once, described once."""

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar, get_origin

import typer
from pydantic_core import PydanticUndefined

from glider.config import Config

Settings = TypeVar("Settings", bound=Config)
_FLAGS = {  # where an option's name is not its field's
    "abstain": "--abstain/--no-abstain",
    "otel": "--otel/--no-otel",
    "signal": "--global",
    "require_key": "--key",
    "columns": "--map",
}
_CONTEXT = "context"  # the parameter by which typer hands over how the command was called
_CONTEXT_PARAMETER = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_TEXT: dict[Any, Any] = {Any: str | None, str | int | None: str | None}  # how the command line takes what Python may


def with_settings(
    settings: type[Settings], name: str = "config", skip: Collection[str] = ()
) -> Callable[[Callable], Callable]:
    """Replace the parameter `name` of a command by one option per field of a settings model, but those skipped."""

    def decorate(command: Callable) -> Callable:
        remaining = [p for p in inspect.signature(command).parameters.values() if p.name not in (name, _CONTEXT)]
        fields = {
            field: info
            for field, info in settings.model_fields.items()
            if field not in skip and get_origin(info.annotation) is not dict
        }
        options = [_option(field, info) for field, info in fields.items()]

        def run(**arguments: Any) -> Any:
            values = {field: arguments.pop(field) for field in fields}
            context: typer.Context | None = arguments.pop(_CONTEXT, None)
            if context is not None:
                if getattr(command, "takes_context", False):
                    arguments[_CONTEXT] = context
                values = {field: value for field, value in values.items() if _is_explicit(context, field)}
            return command(**arguments, **{name: settings.parse(**values)})

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.takes_context = True  # pyright: ignore[reportFunctionMemberAccess]  as a command of further settings
        parameters = [_CONTEXT_PARAMETER, *remaining, *options]
        run.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _is_explicit(context: typer.Context, name: str) -> bool:
    """Whether the command line says this option; where it does not, the settings know their default themselves."""
    source = context.get_parameter_source(name)
    return source is None or source.name != "DEFAULT"


def _option(name: str, info: Any) -> inspect.Parameter:
    default = ... if info.default is PydanticUndefined else info.default
    kind = _TEXT.get(info.annotation, info.annotation)
    kind = str if kind == str | None and isinstance(default, str) else kind
    flag = typer.Option(_FLAGS.get(name, f"--{name.replace('_', '-')}"), help=info.description)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is ... else default,
        annotation=Annotated[kind, flag],
    )
