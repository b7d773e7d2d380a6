"""From a row to the prompt that a model sees: columns, template, system prompt, chat messages or text, length."""

import hashlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Self

from jinja2 import TemplateError

from counterpoint.errors import DomainError
from counterpoint.inputs import LIBRARY_FAULTS

Prompt = str | list[dict[str, Any]]

_INDEX = re.compile(r"-?[0-9]{1,9}$")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")
_LIMIT = 10.0  # seconds of processor time for one chat template; they take a thousandth of one
_FAULTS: tuple[type[Exception], ...] = (TemplateError, *LIBRARY_FAULTS)


@dataclass(frozen=True)
class Column:
    """A place in a row: ``answer``, ``question.stem`` or ``choices[0].text``. Keys and indices only, no attributes."""

    text: str

    def steps(self) -> list[str]:
        """The keys and indices on the way."""
        found = list(_STEP.finditer(self.text))
        if not found or "".join(match[0] for match in found) != self.text:
            raise DomainError(f"{{{self.text}}} is no column. Write {{column}}, {{column.key}} or {{column[0]}}.")
        return [match[1] or match[2] for match in found]

    def get(self, row: Mapping[str, Any]) -> Any:
        """The value in ``row``.

        Raises:
            DomainError: nothing is there; the message lists what is.
        """
        if self.text in row:
            return row[self.text]
        value: Any = row
        seen = ""
        for step in self.steps():
            if isinstance(value, Mapping):
                if step not in value:
                    where, what = (f" in {seen!r}", "keys") if seen else ("", "columns")
                    raise DomainError(f"no {step!r}{where}; the {what} are: {', '.join(map(str, value)) or 'none'}.")
                value = value[step]
            elif isinstance(value, list | tuple) and _INDEX.match(step):
                if not -len(value) <= int(step) < len(value):
                    raise DomainError(f"{seen!r} has {len(value)} items, so there is no [{step}].")
                value = value[int(step)]
            else:
                found = repr(value)
                raise DomainError(f"{seen!r} is {found[:60]}{'...' * (len(found) > 60)}, so it has no {step!r}.")
            seen = f"{seen}.{step}" if seen else step
        return value


@dataclass(frozen=True)
class Template:
    """Text with ``{column}`` where a row's values go; ``{{`` and ``}}`` are literal braces.

    >>> Template.parse("{a} + {b[0]} = {{x}}").render({"a": 1, "b": [2]})
    '1 + 2 = {x}'
    """

    parts: tuple[str | Column, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The template written as ``text``.

        Raises:
            DomainError: a brace without its partner, or something else than a column between braces.
        """
        parts: list[str | Column] = []
        for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]", text):
            if match[1] is not None:
                column = Column(match[1].strip())
                column.steps()
                parts.append(column)
            elif match[0] in "{}":
                raise DomainError(
                    f"a single {match[0]!r} at character {match.start() + 1}. Write it twice for a brace."
                )
            else:
                parts.append(match[0][0] if match[0] in ("{{", "}}") else match[0])
        return cls(tuple(parts))

    @property
    def only_column(self) -> Column | None:
        """The column of a template that is nothing else."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Column) else None

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for ``row``: strings as they are, other values as JSON.

        Raises:
            DomainError: a column that is missing or null.
        """
        return "".join(part if isinstance(part, str) else _as_text(part, row) for part in self.parts)


def _as_text(column: Column, row: Mapping[str, Any]) -> str:
    value = column.get(row)
    if value is None:
        raise DomainError(f"{column.text!r} is null.")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class Prompter:
    """Makes prompts of rows: text, or chat messages where the tokenizer has a chat template and ``chat`` allows it.

    Raises:
        DomainError: a malformed template, or ``chat: true`` with a tokenizer that has no chat template.
    """

    def __init__(self, template: str, system: str | None, chat: bool | None, tokenizer: Any) -> None:
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not has_template:
            raise DomainError(
                "chat is true, but the model's tokenizer has no chat template. Set chat: false for plain text, or use "
                "a model with a chat template."
            )
        try:
            self.template = Template.parse(template)
        except DomainError as error:
            raise DomainError(f"prompt: {error}") from None
        self.system = system
        self.chat = has_template if chat is None else chat

    def prompt(self, row: dict[str, Any]) -> Prompt:
        """The prompt of ``row``; a column that holds chat messages is taken as they are."""
        column = self.template.only_column
        if column is not None and _is_messages(value := column.get(row)):
            if not self.chat:
                raise DomainError(
                    f"{column.text!r} holds chat messages, but prompts are plain text here. Use a model with a chat "
                    "template, or a template over the messages' text."
                )
            return self._with_system([dict(message) for message in value])
        text = self.template.render(row)
        if not self.chat:
            return f"{self.system}\n\n{text}" if self.system is not None else text
        return self._with_system([{"role": "user", "content": text}])

    def _with_system(self, messages: list[dict[str, Any]]) -> Prompt:
        if self.system is None or messages[0].get("role") == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in value)
    )


def prompt_key(prompt: Prompt) -> str:
    """What tells two prompts apart."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_lengths(
    prompts: Sequence[Prompt], tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Tokens of each prompt, as the model will see it.

    Raises:
        DomainError: the chat template refuses a prompt, as some do system prompts, or does not come to an end.
    """
    if not prompts:
        return []
    chosen = {"add_generation_prompt": True, "tokenize": False, **(chat_template_kwargs or {})}
    texts: list[str] = []
    with _time_limit() as start:
        for prompt in prompts:
            if isinstance(prompt, str):
                texts.append(prompt)
                continue
            start()
            try:
                texts.append(tokenizer.apply_chat_template(prompt, **chosen))
            except _FAULTS as error:
                raise DomainError(f"the model's chat template refuses the prompt: {error}.") from error
    plain = isinstance(prompts[0], str)  # chat templates write special tokens themselves
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=plain)["input_ids"]]


@contextmanager
def _time_limit() -> Iterator[Callable[[], object]]:
    """Gives what starts the clock: ``TimeoutError`` after that many seconds of work, where a signal can say so.

    A template is a program of whoever made the model. Processor time is counted, so that a busy machine changes
    nothing, and only the main thread hears signals.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield lambda: None
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it does not end within {_LIMIT} seconds")

    former = signal.signal(signal.SIGVTALRM, stop)
    try:
        yield partial(signal.setitimer, signal.ITIMER_VIRTUAL, _LIMIT)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, former)
