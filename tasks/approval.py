"""What a promotion rests on, and what people answered who were asked about it: kept in the store, under the evidence.

Asking is the flow's part (`flows/approval.py`): a task cannot be suspended.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.errors import FatalError
from nothing_gpt.records import digest
from nothing_gpt.serve.registry import Approval, Registry
from nothing_gpt.store import Store

FOLDER = "approvals"


@dataclass(frozen=True)
class Evidence:
    """What speaks for a promotion, and the registry as it was when the candidate was compared with what is served."""

    candidate: Artifact
    evaluation: Artifact
    decision: Decision
    registry: Registry

    @property
    def name(self) -> str:
        """Names the evidence (16 hexadecimal digits). How many versions there were is part of it: what was promoted and
        taken back is another question."""
        made = {
            "candidate": self.candidate.digest,
            "evaluation": self.evaluation.digest,
            "reasons": [reason.text for reason in self.decision.reasons],
            "replaces": self.registry.current,
            "versions": len(self.registry.versions),
        }
        return digest(made)[:16]


class Answer(BaseModel):
    """What a person decided, and about what."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["approve", "reject"]
    approval: Approval
    """Who decided so, why and when."""
    run: str
    """Id of the flow run that asked."""
    candidate: str
    evaluation: str
    """Keys of the artifacts."""
    replaces: int | None
    """The version that was served, None for the starting adapter."""


def answers(store: Store, evidence: Evidence) -> list[Answer]:
    """Everything that was answered about the evidence, the latest last. Raises FatalError where one is damaged."""
    given = [_answer(store, key) for key in store.list(f"{FOLDER}/{evidence.name}")]
    return sorted(given, key=lambda answer: answer.approval.at)


def _answer(store: Store, key: str) -> Answer:
    try:
        return Answer.model_validate_json(store.read(key) or b"")
    except ValidationError:
        raise FatalError(
            f"{store.uri}/{key}: damaged, so what was answered is unknown; delete it to be asked again"
        ) from None


def record(store: Store, evidence: Evidence, asking: str, answer: Answer) -> None:
    """Keeps the answer to one asking."""
    store.write(f"{FOLDER}/{evidence.name}/{asking}.json", answer.model_dump_json(indent=1).encode())
