"""Where a domain's rows come from: one class per ``type``, and the shorthands that stand for them."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from counterpoint.config.section import MAX_COUNT, Path, Section

FILE_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix -> format; a further ``.gz`` is read through gzip."""


class PocketSource(Section):
    """One of the toy tasks that come with the package; rows are made, not read."""

    type: Literal["pocket"] = Field(description="`pocket`: a toy task of the embedded test bed.")
    task: str | None = Field(
        default=None, description="Task name; null means the domain's own name.", examples=["math"]
    )
    size: int = Field(default=4096, gt=0, le=MAX_COUNT, description="Number of training rows to make.", examples=[4096])


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


class HubSource(Section):
    """A dataset of the Hugging Face hub, read through `datasets`."""

    type: Literal["hub"] = Field(description="`hub`: a dataset of the Hugging Face hub.")
    path: Path = Field(description="Dataset id.", examples=["openai/gsm8k"])
    config: str | None = Field(default=None, description="Configuration of the dataset.", examples=["main"])
    split: str = Field(default="train", description="Split to read.", examples=["train"])
    revision: str | None = Field(
        default=None, description="Branch, tag or commit; null means the newest.", examples=["main"]
    )


class ReasoningGymSource(Section):
    """A procedurally made task of `reasoning-gym` (extra `reasoning-gym`)."""

    type: Literal["reasoning_gym"] = Field(description="`reasoning_gym`: a task of reasoning-gym.")
    task: Path = Field(description="Name of the task.", examples=["chain_sum"])
    size: int = Field(default=1024, gt=0, le=MAX_COUNT, description="Number of rows to make.", examples=[1024])
    seed: int = Field(default=0, ge=0, description="Seed of the rows.", examples=[0])
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the task, passed on.", examples=[{"max_terms": 3}]
    )


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
Source = Annotated[_Tagged, BeforeValidator(expand_source, json_schema_input_type=str | _Tagged)]
