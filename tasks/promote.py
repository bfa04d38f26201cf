"""The candidate takes over the stable name. Never cached."""

from nothing_gpt.artifacts import Workshop
from nothing_gpt.records import read_jsonl
from nothing_gpt.results import evaluation_metrics, training_metrics
from nothing_gpt.serve import promote as library
from nothing_gpt.serve.registry import Approval, Version
from tasks import stage
from tasks.approval import Evidence
from tasks.place import Models, Place


@stage("promote")
def promote(place: Place, models: Models, evidence: Evidence, approval: Approval | None) -> Version:
    workshop, candidate, evaluation = place.workshop, evidence.candidate, evidence.evaluation
    folder = workshop.folder(candidate)
    already = library.is_current(workshop.store, folder)
    if already and place.serves(folder):
        return already
    training, win_rate = training_metrics(workshop, candidate), evaluation_metrics(workshop, evaluation)["win_rate"]
    # The longest conversation that both adapters answered: it fills several blocks of the server's prefix cache.
    compared = [row for _, row in read_jsonl(workshop.file(evaluation, "comparisons.jsonl"))]
    answered = [row["prompt"] for row in compared if row["reference"] and row["candidate"]]
    longest = max(answered or [compared[0]["prompt"]], key=lambda prompt: sum(len(turn["content"]) for turn in prompt))
    return library.promote(
        workshop,
        library.Candidate(
            folder,
            candidate.key,
            candidate.fingerprint,
            place.settings.place.kind,
            reasons=[r.text for r in evidence.decision.reasons],
            metrics={"eval_accuracy": training["eval_accuracy"], "win_rate": win_rate["value"]},
            approval=approval,
            lineage=_lineage(workshop, [evaluation.key, candidate.key]),
        ),
        workshop.folder(models.start),
        place.server(models),
        evidence.registry.current,
        longest,
    )


def _lineage(workshop: Workshop, keys: list[str]) -> dict[str, str]:
    """Stage and key of these artifacts and of all that led to them, the first of all first. Of two of one stage, as in
    a second round, it is the nearer one."""
    found: dict[str, str] = {}
    waiting = [*keys]
    while waiting:
        key = waiting.pop(0)
        if found.setdefault(key.split("/")[0], key) == key and (manifest := workshop.manifest(key)):
            waiting += manifest.lineage.values()
    return dict(reversed(found.items()))
