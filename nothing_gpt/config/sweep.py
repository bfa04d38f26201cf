"""What a sweep compares."""

from itertools import product
from typing import Any, Self

from pydantic import Field, model_validator

from nothing_gpt.config.group import Group

MOST_POINTS = 64
PRESET = "preset"
"""A point's key that is no setting: it names a file of deployments/presets, over which the point's settings lie."""


class SweepSettings(Group):
    """The points that are compared: a list, or all combinations of a grid, or those of both."""

    description: str = Field(default="", description="What the sweep is to answer, and what is expected.")
    points: list[dict[str, Any]] = Field(
        default=[],
        description="Points, each its settings as group.key: value, such as {training.num_train_epochs: 3, "
        "training.learning_rate: 1.0e-6}; preset: NAME is taken too.",
    )
    grid: dict[str, list[Any]] = Field(
        default={}, description="Values to combine, by group.key, such as {training.beta: [0.1, 0.05]}."
    )

    @model_validator(mode="after")
    def _points_differ(self) -> Self:
        points = self.combined()
        if any(point in points[:i] for i, point in enumerate(points)):
            raise ValueError("two points are the same; take one out")
        if len(points) > MOST_POINTS:
            raise ValueError(f"{len(points)} points; a sweep takes at most {MOST_POINTS}")
        for key in {key for point in points for key in point}:
            if key.startswith("place."):
                raise ValueError(f"{key}: the points of a sweep share one place; run the sweep once in each")
        return self

    def combined(self) -> list[dict[str, Any]]:
        """Every point's settings, in the order of the list and then of the grid, whose last key changes first."""
        if not (self.points or self.grid):
            return []
        combinations = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        return [point | combination for point in self.points or [{}] for combination in combinations]
