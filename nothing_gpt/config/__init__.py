"""All settings: seven small frozen groups, each field with its bounds and the advice a person needs to choose it.

Values come from a YAML file, then `group.key=value` overrides. Secrets come from the environment (`Environment`) and
are never part of a group, so they reach no fingerprint, log, artifact or flow parameter.
"""

from typing import Self

from pydantic import model_validator

from nothing_gpt.config.asking import EndpointSettings, JudgeSettings, Price, PromptsSettings, SamplingSettings
from nothing_gpt.config.environment import Environment
from nothing_gpt.config.gate import GateSettings
from nothing_gpt.config.group import Group
from nothing_gpt.config.place import GKESettings, ModalSettings, PlaceSettings
from nothing_gpt.config.scale import ScaleSettings
from nothing_gpt.config.sweep import SweepSettings
from nothing_gpt.config.training import TrainingSettings
from nothing_gpt.errors import FatalError

__all__ = [
    "EndpointSettings", "Environment", "GKESettings", "GateSettings", "Group", "JudgeSettings", "ModalSettings",
    "PlaceSettings", "Price", "PromptsSettings", "SamplingSettings", "ScaleSettings", "Settings", "SweepSettings",
    "TrainingSettings",
]  # fmt: skip


class Settings(Group):
    """The seven groups together."""

    prompts: PromptsSettings = PromptsSettings()
    sampling: SamplingSettings = SamplingSettings()
    judge: JudgeSettings = JudgeSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    place: PlaceSettings = PlaceSettings()
    scale: ScaleSettings = ScaleSettings()

    @model_validator(mode="after")
    def _what_is_measured_can_be(self) -> Self:
        if self.training.label_smoothing == "measured" and self.judge.votes == 1:
            raise ValueError("training.label_smoothing: measured needs judge.votes=2: one vote disagrees with nobody")
        return self

    def check_chain(self) -> None:
        """Raises FatalError where a chain lacks what its place does not bring; a single command may do without."""
        if self.training.nodes > 1 and self.place.kind != "gke":
            raise FatalError(
                f"training.nodes={self.training.nodes}: place.kind={self.place.kind} trains on one machine; set it to "
                "1, and training.gpus to the GPUs that it has"
            )
        if self.place.kind == "embedded":
            return
        if not self.prompts.paths:
            raise FatalError("prompts.paths: empty; give --prompts FILE, or use place.kind=embedded")
        if not self.place.base_model:
            raise FatalError("place.base_model: empty; name the base model that the SFT adapter belongs to")
        if self.place.kind == "gke":
            if not self.place.bucket:
                raise FatalError("place.bucket: not set; give gs://BUCKET/PREFIX in the settings or with --set")
            if not (self.place.gke.image or self.place.gke.registry):
                raise FatalError(
                    "place.gke.registry: not set; name the Artifact Registry repository for the training image, "
                    "LOCATION-docker.pkg.dev/PROJECT/REPOSITORY, or an image as place.gke.image"
                )
