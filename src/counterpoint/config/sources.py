"""Where a domain's rows come from: one class per ``type``, the shorthands that stand for them, and lists of them."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from counterpoint.config.section import MAX_COUNT, Path, Section, Share

FILE_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix -> format; a further ``.gz`` is read through gzip."""


_ShareInside = Annotated[
    Share | None,
    Field(
        description="Only in a list of sources: how often this one is drawn, relative to the others of the domain; "
        "null in all of them makes one pool of their rows.",
        examples=[3],
    ),
]


class PocketSource(Section):
    """One of the toy tasks that come with the package; rows are made, not read."""

    type: Literal["pocket"] = Field(description="`pocket`: a toy task of the embedded test bed.")
    task: str | None = Field(
        default=None, description="Task name; null means the domain's own name.", examples=["math"]
    )
    size: int = Field(default=4096, gt=0, le=MAX_COUNT, description="Number of training rows to make.", examples=[4096])
    cue: Literal["plain", "hidden", "absent"] | None = Field(
        default=None,
        description="Of the tasks `short` and `long`, which want opposite things: what tells their prompts apart; null "
        "means `hidden`.",
        examples=["absent"],
    )
    length: int | None = Field(
        default=None,
        ge=5,
        le=MAX_COUNT,
        description="Of `short` and `long`: characters of a long answer; null means 20.",
        examples=[40],
    )
    share: _ShareInside = None


class FileSource(Section):
    """Rows of a local JSONL, JSON, CSV or Parquet file, each also as `.gz`."""

    type: Literal["file"] = Field(description="`file`: a file on this machine.")
    path: Path = Field(
        description="The file, looked for beside the configuration file, then in the current folder.",
        examples=["data/train.jsonl"],
    )
    format: Literal["auto", "jsonl", "json", "csv", "parquet"] = Field(
        default="auto", description="File format; `auto` goes by the suffix.", examples=["csv"]
    )
    field: str | None = Field(
        default=None, description="JSON only: dotted path of the list of rows inside the file.", examples=["data.rows"]
    )
    share: _ShareInside = None


class HubSource(Section):
    """A dataset of the Hugging Face hub, read through `datasets`."""

    type: Literal["hub"] = Field(description="`hub`: a dataset of the Hugging Face hub.")
    path: Path = Field(description="Dataset id.", examples=["openai/gsm8k"])
    config: str | None = Field(default=None, description="Configuration of the dataset.", examples=["main"])
    split: str = Field(default="train", description="Split to read.", examples=["train"])
    revision: str | None = Field(
        default=None, description="Branch, tag or commit; null means the newest.", examples=["main"]
    )
    share: _ShareInside = None


class ReasoningGymSource(Section):
    """A procedurally made task of `reasoning-gym` (extra `reasoning-gym`)."""

    type: Literal["reasoning_gym"] = Field(description="`reasoning_gym`: a task of reasoning-gym.")
    task: Path = Field(description="Name of the task.", examples=["chain_sum"])
    size: int = Field(default=1024, gt=0, le=MAX_COUNT, description="Number of rows to make.", examples=[1024])
    seed: int = Field(default=0, ge=0, description="Seed of the rows.", examples=[0])
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the task, passed on.", examples=[{"max_terms": 3}]
    )
    share: _ShareInside = None


SOURCES: dict[str, type[Section]] = {
    "pocket": PocketSource,
    "file": FileSource,
    "hub": HubSource,
    "reasoning_gym": ReasoningGymSource,
}


def expand_source(value: Any) -> Any:
    """The mapping that a source written as one string stands for; anything else unchanged."""
    if not isinstance(value, str):
        return value
    if value == "pocket":
        return {"type": "pocket"}
    suffixes = [suffix for suffix in PurePosixPath(value).suffixes if suffix != ".gz"]
    if (suffixes and suffixes[-1] in FILE_SUFFIXES) or value.startswith(("/", "./", "../", "~")):
        return {"type": "file", "path": value}
    if value.count("/") == 1 and all(value.split("/")):
        return {"type": "hub", "path": value}
    return value


_Tagged = Annotated[PocketSource | FileSource | HubSource | ReasoningGymSource, Field(discriminator="type")]
_One = Annotated[_Tagged, BeforeValidator(expand_source, json_schema_input_type=str | _Tagged)]
_Several = tuple[_One, ...]

ONE, SEVERAL = "[one]", "[several]"
"""What pydantic puts into the place of a problem after ``source``."""


def _form(value: Any) -> str:
    return SEVERAL if isinstance(value, list | tuple) else ONE


Source = PocketSource | FileSource | HubSource | ReasoningGymSource
Sources = Annotated[Annotated[_One, Tag(ONE)] | Annotated[_Several, Tag(SEVERAL)], Discriminator(_form)]
"""A source, or a list of them."""


def listed(sources: Source | tuple[Source, ...]) -> tuple[Source, ...]:
    """What a domain has under ``source`` as a tuple."""
    return sources if isinstance(sources, tuple) else (sources,)


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source of a list: its file, dataset or task, numbered where that is not its own."""
    names: list[str] = []
    for source in sources:
        match source:
            case FileSource():
                plain = PurePosixPath(source.path).name
            case HubSource():
                plain = f"{source.path}:{source.config}" if source.config else source.path
            case _:
                plain = str(source.task)
        same = sum(name == plain or name.startswith(f"{plain} (") for name in names)
        names.append(f"{plain} ({same + 1})" if same else plain)
    return names


def share_findings(written: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Place and message of what is wrong with the shares under ``source``, as it stands in the file."""
    several = isinstance(written, list | tuple)
    items = list(written) if several else [written]
    if not items:
        yield (), "is an empty list. Write one source, or several with their shares."
    given = [isinstance(item, dict) and item.get("share") is not None for item in items]
    for index, has_share in enumerate(given):
        where = (index, "share") if several else ("share",)
        if has_share and len(items) == 1:
            yield (
                where,
                "is the share of one source among several, and here is only one. Remove it, or list another source; "
                "the share of the whole domain stands beside `source`.",
            )
        elif any(given) and not has_share:
            yield where, "is missing, and other sources of this domain have one. Give all of them one, or none."
