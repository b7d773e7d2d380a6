"""The base of every configuration section, and the types sections share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_NAME = 100
"""Characters of a name that becomes a part of file names, beside other parts."""

MAX_COUNT = 10_000_000
"""Of rows that are made, of prompts and of completions: what is more would never end."""

LARGEST_SEED = 2**32 - 1
"""What NumPy takes for a seed."""


def _fits_disks(path: str) -> str:
    if any(len(part.encode()) > 255 for part in path.split("/")) or len(path.encode()) > 4000:
        raise ValueError("should have no part of more than 255 bytes, and fewer than 4000 in all")
    return path


DomainName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=MAX_NAME)]
Path = Annotated[str, Field(min_length=1), AfterValidator(_fits_disks)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """One mapping of the file: immutable, every key known, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, use_attribute_docstrings=False)
