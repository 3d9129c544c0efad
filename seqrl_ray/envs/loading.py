"""Finding what `module:callable` in a recipe names, and refusing clearly what cannot be found or called.

Source: ours (the entry-point notation of Python packaging). Departs from it: the recipe's folder is appended
to the import path, so that a user's environment may stand beside its recipe.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seqrl_ray.errors import EnvError, did_you_mean


def load_callable(name: str, folder: Path | None = None) -> Callable[..., Any]:
    """Return what `name` ("module:callable") names.

    Args:
        name: a module and an attribute of it (dots allowed on both sides).
        folder: where the recipe stands; searched after everything else on the import path.
    Raises: EnvError: no such module, a module that fails to import, no such attribute, or not a callable.
    """
    module_name, _, attribute = name.partition(":")
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        target: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise EnvError(
            f"env.id={name!r}: module {module_name!r} does not import: {error}. Install it, correct the "
            f"name, or put {module_name.partition('.')[0]}.py beside the recipe."
        ) from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise EnvError(
                f"env.id={name!r}: {module_name!r} has no {attribute!r}: there is nothing to call."
                f"{did_you_mean(part, dir(target))} Correct the name after the colon."
            )
        target = getattr(target, part)
    if not callable(target):
        raise EnvError(
            f"env.id={name!r} names a {type(target).__name__}, not a callable: no environment can be made "
            "from it. Name a class, or a function that returns an environment."
        )
    found: Callable[..., Any] = target
    return found


def check_kwargs(name: str, target: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that `target` does not take.

    Raises: EnvError: an unknown or a missing argument; the message says which.
    """
    try:
        inspect.signature(target).bind(**kwargs)
    except TypeError as error:
        known = [p for p in inspect.signature(target).parameters if p not in ("args", "kwargs", "self")]
        raise EnvError(
            f"env.kwargs={dict(kwargs)!r} does not fit {name}: {error}. Arguments it takes: "
            f"{', '.join(known) or 'none'}."
        ) from None
