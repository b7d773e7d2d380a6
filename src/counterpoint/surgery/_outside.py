"""Import of the user's own functions, named as ``package.module:function``."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import CounterpointError, nearest


def import_function(path: str, what: str, known: Iterable[str], error: type[CounterpointError]) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    if not attribute:
        raise error(f"Unknown {what} {path!r}: {nearest(path, known)} One of your own is 'package.module:function'.")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as cause:
        raise error(f"The {what} {path!r} cannot be imported: {cause}.") from cause
    if not callable(found):
        raise error(f"The {what} {path!r} is a {type(found).__name__}; it must be a function.")
    return found
