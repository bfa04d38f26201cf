"""The candidate takes over the stable name. Never cached."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.records import read_jsonl
from nothing_gpt.results import evaluation_metrics, training_metrics
from nothing_gpt.serve import promote as library
from nothing_gpt.serve.registry import Version
from tasks import stage
from tasks.place import Models, Place


@stage("promote")
def promote(place: Place, models: Models, candidate: Artifact, evaluation: Artifact, decision: Decision) -> Version:
    workshop = place.workshop
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
            reasons=[r.text for r in decision.reasons],
            metrics={"eval_accuracy": training["eval_accuracy"], "win_rate": win_rate["value"]},
        ),
        workshop.folder(models.start),
        place.server(models),
        longest,
    )
