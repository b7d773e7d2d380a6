"""What the classes of weightings and groupings say of themselves, for everything that must know it. No torch.

A named class carries its name, its paper and its named strategies; the first line of its docstring says what it is; its
options are the typed parameters of its ``__init__``, each with its limits and its meaning:

    def __init__(self, level: Annotated[float, Gt(0), Lt(0.5), doc("Share of false alarms.")] = 0.05) -> None:

Checks of configurations, errors, help and tables in the docs are made from that and from nothing else.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, NotRequired, TypeVar, get_type_hints

from .errors import nearest, shown

Path = tuple[str | int, ...]

SEQUENTIAL = "sequential"
"""The strategy that trains one domain after another: stages, and no weighting."""


class Named:
    """A class that is known by its name."""

    name: ClassVar[str] = ""
    """How configurations write it; empty in a base class and in one of the user's own."""

    paper: ClassVar[str] = ""
    """Where it comes from: the number of a paper on arXiv, or a reference."""

    @classmethod
    def summary(cls) -> str:
        """What it is, in one line."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]


Kind = TypeVar("Kind", bound=Named)


class Rule:
    """``Annotated[T, Rule(check)]``: ``check(value, domains)`` raises ``ValueError`` for a value that is not allowed.

    ``domains`` are those of the run; None where they are not known yet.
    """

    def __init__(self, check: Callable[[Any, Collection[str] | None], None]) -> None:
        self._check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def checked(value: Any, info: Any) -> Any:
            self._check(value, info.context)
            return value

        return core_schema.with_info_after_validator_function(checked, handler(source))


def _is_domain(name: str, domains: Collection[str] | None) -> None:
    if domains is not None and name not in domains:
        raise ValueError(f"unknown domain {name!r}: {nearest(name, domains)}")


Domain = Annotated[str, Rule(_is_domain)]
"""The name of one of the run's domains, in the type of an option."""


def named_classes(package: str, folders: Iterable[str], base: type[Kind]) -> dict[str, type[Kind]]:
    """Every class below ``base`` with a name of its own in the files of ``package``, which are imported."""
    found: dict[str, type[Kind]] = {}
    for file in pkgutil.iter_modules(folders):
        module = importlib.import_module(f"{package}.{file.name}")
        for item in vars(module).values():
            if inspect.isclass(item) and issubclass(item, base) and "name" in vars(item):
                assert found.setdefault(item.name, item) is item, f"two classes are named {item.name!r}"
    return found


def options_of(found: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The options by name. Types of a class that is not :class:`Named` are the user's own affair, and are ``Any``."""
    hints: dict[str, Any] = {}
    if inspect.isclass(found) and issubclass(found, Named):
        with suppress(NameError):  # a type that is imported for type checkers alone
            hints = get_type_hints(found.__init__, include_extras=True)
    parameters = inspect.signature(found).parameters.values()
    return {item.name: item.replace(annotation=hints.get(item.name, Any)) for item in parameters}


def options_type(found: Callable[..., Any]) -> Any:
    """pydantic's ``TypeAdapter`` for a mapping of the options."""
    from pydantic import ConfigDict, TypeAdapter  # late: the Surgeon is imported with torch alone
    from typing_extensions import TypedDict

    options = options_of(found).values()
    fields = {
        item.name: item.annotation if item.default is item.empty else NotRequired[item.annotation]
        for item in options
        if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    }
    made: Any = TypedDict  # by hand, for mypy reads literal ones alone
    shape = made("options", fields)
    extra: Any = "allow" if any(item.kind is item.VAR_KEYWORD for item in options) else "forbid"
    shape.__pydantic_config__ = ConfigDict(extra=extra, strict=True, arbitrary_types_allowed=True)
    return TypeAdapter(shape)


def option_problems(
    name: str,
    found: Callable[..., Any],
    options: Mapping[str, Any],
    domains: Collection[str] | None = None,
    elsewhere: Collection[str] = (),
) -> Iterator[tuple[Path, str]]:
    """Path and message of everything in ``options`` that ``found``, called ``name``, does not take.

    With ``domains``, those of the run, also of what names another one; ``elsewhere`` are options not written here.
    """
    from pydantic import ValidationError

    known = {key: option for key, option in options_of(found).items() if key not in elsewhere}
    try:
        options_type(found).validate_python(dict(options), context=domains)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            path = tuple(part for part in details["loc"] if part != "[key]")
            key, kind, about = str(path[0]), details["type"], meaning(known.get(str(path[0])))
            if kind == "extra_forbidden":
                yield path, f"is no option of {name!r}: {nearest(key, known) if known else 'it has none. Remove it.'}"
            elif kind == "missing":
                yield path, f"is missing, and {name!r} needs it. {about}".rstrip()
            elif kind == "value_error":
                yield path, rule_of(details)
            else:
                yield path, f"{rule_of(details)}, found {shown(details['input'])}. {about}".rstrip()


def rule_of(details: Any) -> str:
    """What was to hold, of one entry of ``ValidationError.errors()``: ``should be greater than 0``."""
    text: str = details["msg"]
    return text.removeprefix("Value error, ").removeprefix("Input ").replace("valid dictionary", "mapping")


def meaning(option: inspect.Parameter | None) -> str:
    """What ``doc()`` says of an option; empty where nothing does."""
    metadata = getattr(option.annotation, "__metadata__", ()) if option else ()
    return next((item.documentation for item in metadata if hasattr(item, "documentation")), "")
