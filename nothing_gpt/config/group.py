"""What every group of settings is."""

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """A frozen group of settings that refuses unknown names. A default is what it would be if it were given (2 epochs
    are 2.0), so that settings that went through a file have the same fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
