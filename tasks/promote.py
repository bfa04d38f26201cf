"""The candidate takes over the stable name. Never cached."""

from nothing_gpt.artifacts import Artifact
from nothing_gpt.dpo.gate import Decision
from nothing_gpt.records import read_prompts
from nothing_gpt.results import evaluation_metrics, training_metrics
from nothing_gpt.serve import promote as library
from nothing_gpt.serve.registry import Version
from tasks import stage
from tasks.place import Models, Place


@stage("promote")
def promote(
    place: Place, models: Models, prompts: Artifact, candidate: Artifact, evaluation: Artifact, decision: Decision
) -> Version:
    workshop = place.workshop
    folder = workshop.folder(candidate)
    already = library.is_current(workshop.store, folder)
    if already and place.serves(folder):
        return already
    training, win_rate = training_metrics(workshop, candidate), evaluation_metrics(workshop, evaluation)["win_rate"]
    held_out, _ = read_prompts(workshop.file(prompts, "test.jsonl"))
    longest = max(held_out, key=lambda prompt: sum(len(message["content"]) for message in prompt.messages))
    return library.promote(
        workshop.store,
        library.Candidate(
            folder,
            candidate.key,
            candidate.fingerprint,
            reasons=[r.text for r in decision.reasons],
            metrics={"eval_accuracy": training["eval_accuracy"], "win_rate": win_rate["value"]},
        ),
        workshop.folder(models.start),
        place.server(models),
        longest.messages,
    )
