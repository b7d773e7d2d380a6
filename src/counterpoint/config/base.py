"""The base of every configuration section, and the types sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DomainName = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
Path = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """One mapping of the file: immutable, every key known, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, use_attribute_docstrings=False)
