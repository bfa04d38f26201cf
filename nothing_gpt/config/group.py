"""What every group of settings is."""

from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

_SIGNS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


class Group(BaseModel):
    """A frozen group of settings that refuses unknown names. A default is what it would be if it were given (2 epochs
    are 2.0), so that settings that went through a file have the same fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Descriptions end with the bounds: of the two, Prefect's form shows descriptions alone."""
        schema = handler(core_schema)
        for field in handler.resolve_ref_schema(schema).get("properties", {}).values():
            if bounds := _bounds(field):
                field["description"] = f"{field.get('description', '')} ({bounds})".strip()
        return schema


def _bounds(field: dict[str, Any]) -> str:
    """Bounds of a number's JSON schema, such as `> 0, ≤ 1`; empty where there are none."""
    kinds = [field, *field.get("anyOf", [])]
    return ", ".join(f"{sign} {kind[name]:g}" for kind in kinds for name, sign in _SIGNS.items() if name in kind)
