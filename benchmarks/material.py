"""Made-up scenes of the usual size: prompts of about 900 characters, completions of about 350.

Every text follows from its key alone, so that an endpoint that is asked again answers the same.
"""

import hashlib
import json
from pathlib import Path

CAST = ("JERRY", "GEORGE", "ELAINE", "KRAMER")
LINES = (
    "Who alphabetizes soup? It is soup. You look at it and you know.",
    "I told her I was an importer, and now she wants to see the warehouse.",
    "You returned a sweater you were wearing to the people who watched you wear it?",
    "It is not a lie if the elevator doors close before you finish the sentence.",
    "There is a man downstairs who says the coupon never expires. Never!",
    "So I said nothing, and that was apparently the wrong nothing.",
    "I have a guy for that. I have a guy for the guy.",
    "Why do they call it a waiting room? What else would you do in there?",
)
SYSTEM = (
    "You are a writer for a television comedy about four friends. Continue the scene with natural dialogue.\n"
    "Format each line as: [CHARACTER] dialogue\n\nCharacters:\n"
    "- JERRY: observes everyday life and finds what is odd in it\n"
    "- GEORGE: cheap and worried, with schemes that turn against him\n"
    "- ELAINE: sharp and impatient, the most reasonable of them\n"
    "- KRAMER: sudden, certain, and never where one expects him"
)


def key_of(text: str) -> str:
    """A short name for a text, the same in every process."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scene(key: str, lines: int = 5) -> str:
    """Dialogue that is no other key's."""
    drawn = hashlib.sha256(key.encode()).digest()
    spoken = (f"[{CAST[byte % 4]}] {LINES[byte // 4 % 8]}" for byte in drawn[: lines - 1])
    return "\n".join([f"[{CAST[drawn[-1] % 4]}] Apartment {key}. That is the one.", *spoken])


def write_prompts(path: Path, count: int) -> None:
    """`prompts.jsonl` in the guide's form."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": _conversation(number)}) + "\n")


def write_completions(path: Path, count: int, completions: int) -> None:
    """`completions.jsonl` in the guide's form."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            texts = [scene(f"{number}/{index}") for index in range(completions)]
            file.write(json.dumps({"prompt": _conversation(number), "completions": texts}) + "\n")


def _conversation(number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": scene(f"prompt {number}")}]
