"""Shows the options of a function that takes them as ``**options`` under ``@accepts(Record)``.

The record's fields, their defaults and help texts are known at run time only, where the decorator has put them into the
signature and the docstring; pages are otherwise made from the source text.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe


class AcceptedOptions(griffe.Extension):
    """Gives such a function the signature and the docstring that it has at run time."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """After a function has been read."""
        if not any(str(decorator.value).startswith("accepts(") for decorator in func.decorators):
            return
        function: Any = importlib.import_module(func.module.path)
        for name in func.path.removeprefix(f"{func.module.path}.").split("."):
            function = getattr(function, name)
        func.parameters = griffe.Parameters(*map(_parameter, inspect.signature(function).parameters.values()))
        text = inspect.getdoc(function)
        if text:
            func.docstring = griffe.Docstring(text, lineno=func.lineno, parent=func, parser="google")


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    kind = griffe.ParameterKind(parameter.kind.description)
    annotation = None if parameter.annotation is parameter.empty else _words(parameter.annotation)
    default = None if parameter.default is parameter.empty else repr(parameter.default)
    return griffe.Parameter(parameter.name, annotation=annotation, kind=kind, default=default)


def _words(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return inspect.formatannotation(annotation).replace("typing.", "")
