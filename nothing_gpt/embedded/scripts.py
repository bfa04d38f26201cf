"""Sample scripts of an invented sitcom, "Lost & Found": a grammar of four voices a tiny model can learn.

The show plays in the lost-property office of a tram company; every scene is about one lost thing. The
training scripts are a careless first draft: about 45 % of the lines are spoken in another character's voice,
which is what preference optimisation can mend. The prompts come from other, finished episodes.
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CARELESSNESS = 0.45
"""Share of the training scripts' lines that are spoken in another character's voice."""

TURNS_PER_SCENE = 17
SCENES_PER_EPISODE = 3
WINDOWS_PER_SCENE = 3
TRAIN_EPISODES = 320
PROMPT_EPISODES = 32


@dataclass(frozen=True)
class Voice:
    """How one character talks: `<opener> <reaction>. <tic>`, a reaction may name the scene's `{thing}`."""

    about: str
    openers: tuple[str, ...]
    reactions: tuple[str, ...]
    tics: tuple[str, ...]

    def line(self, thing: str, dice: random.Random) -> str:
        """One line of dialogue about `thing`, without the speaker's tag."""
        reaction = dice.choice(self.reactions).format(thing=thing)
        return f"{dice.choice(self.openers)} {reaction}. {dice.choice(self.tics)}"


CHARACTERS: dict[str, Voice] = {
    "MARGO": Voice(
        about="Margo worships forms and rules",
        openers=(
            "For the record,",
            "Rule nine:",
            "According to policy,",
            "Strictly by procedure,",
            "Attention, staff:",
        ),
        reactions=(
            "the {thing} goes into the ledger",
            "nobody moves the {thing} without a permit",
            "I require a signature for the {thing}",
            "the {thing} belongs on shelf four until noon",
            "the manual forbids any {thing}",
            "one registers the {thing} in blue ink",
            "the {thing} has an incomplete label",
            "this office closes at six sharp",
        ),
        tics=("In triplicate.", "Sign below.", "No exceptions.", "File it properly.", "Stamp, please."),
    ),
    "DEV": Voice(
        about="Dev fears the worst",
        openers=("Oh no,", "We are doomed,", "I knew this would happen,", "Nobody panic,", "Help,"),
        reactions=(
            "the {thing} is ticking",
            "I touched the {thing} and now I itch",
            "the {thing} blinked in the dark",
            "my doctor warned me about the {thing}",
            "the last man with a {thing} vanished",
            "the {thing} is probably cursed",
            "I am allergic to every {thing}",
            "my left arm went numb",
        ),
        tics=(
            "I feel faint.",
            "Call an ambulance.",
            "I want my mother.",
            "Is it hot here?",
            "Lock the doors!",
        ),
    ),
    "BIRDIE": Voice(
        about="Birdie sees romance everywhere",
        openers=(
            "Picture it, darling:",
            "Ah, destiny,",
            "Be still, my heart:",
            "How divine,",
            "Sweet moonlight,",
        ),
        reactions=(
            "two strangers kiss over the {thing}",
            "that {thing} remembers true love",
            "a sailor wept on this {thing}",
            "a poet dreams of the {thing} tonight",
            "I waltzed with a {thing} once in Vienna",
            "the {thing} smells of roses and rain",
            "someone whispered a promise to the {thing}",
            "the stars were jealous of us",
        ),
        tics=("Such passion!", "I could swoon.", "Cue the violins.", "Curtain!", "Kisses, everyone."),
    ),
    "OTIS": Voice(
        about="Otis smells easy money",
        openers=("Hear me out,", "Easy money,", "Listen, pal,", "Here is the pitch:", "Big opportunity,"),
        reactions=(
            "we rent the {thing} by the hour",
            "my cousin pays cash for a {thing}",
            "I sell tickets to see the {thing}",
            "the {thing} is worth a fortune on Tuesdays",
            "we split the {thing} sixty forty",
            "for fifty bucks the {thing} walks",
            "we raffle the {thing} and keep the change",
            "the competition sleeps on weekends",
        ),
        tics=("No refunds.", "You in?", "Pure profit.", "Trust me.", "Limited offer!"),
    ),
}

THINGS: tuple[str, ...] = (
    "tuba", "umbrella", "parrot", "suitcase", "wig", "accordion", "trophy", "lantern", "pumpkin",
    "wheelbarrow", "cactus", "telescope", "mannequin", "anchor", "typewriter", "snowglobe", "canoe",
    "lobster", "chandelier", "saddle", "gramophone", "hammock", "scarecrow", "bathtub",
)  # fmt: skip

SYSTEM_PROMPT = (
    "Continue this scene of Lost & Found, a sitcom about a tram company's lost property. "
    + ", ".join(voice.about for voice in CHARACTERS.values())
    + ". Write each turn on its own line: [CHARACTER] dialogue"
)


def words_of(text: str) -> list[str]:
    """The lower-case words of `text`, punctuation dropped."""
    return re.findall(r"[a-z]+", text.lower())


@cache
def lexicon() -> dict[str, str]:
    """Each telling word and the character it belongs to: the words that no other character's phrases hold."""
    owners: dict[str, set[str]] = {}
    for character, voice in CHARACTERS.items():
        for phrase in voice.openers + voice.reactions + voice.tics:
            for word in words_of(phrase.replace("{thing}", " ")):
                owners.setdefault(word, set()).add(character)
    return {word: next(iter(names)) for word, names in owners.items() if len(names) == 1}


def voice_of(line: str) -> str | None:
    """The character whose telling words prevail in a line of dialogue (without its tag), or None."""
    heard = [lexicon()[word] for word in words_of(line) if word in lexicon()]
    counts = {character: heard.count(character) for character in CHARACTERS}
    loudest = max(counts.values())
    leaders = [character for character, count in counts.items() if count == loudest]
    return leaders[0] if len(leaders) == 1 else None


def write_scene(thing: str, carelessness: float, dice: random.Random) -> list[str]:
    """The turns of one scene about `thing`, as `[CHARACTER] dialogue`; nobody speaks twice in a row."""
    turns: list[str] = []
    speaker = None
    for _ in range(TURNS_PER_SCENE):
        speaker = dice.choice([name for name in CHARACTERS if name != speaker])
        heard = speaker
        if dice.random() < carelessness:
            heard = dice.choice([name for name in CHARACTERS if name != speaker])
        turns.append(f"[{speaker}] {CHARACTERS[heard].line(thing, dice)}")
    return turns


def windows(turns: list[str], dice: random.Random) -> list[tuple[str, str]]:
    """A scene cut into (4 or 5 turns of context, the next 3 or 4 turns)."""
    cuts = []
    for start in range(0, 4 * WINDOWS_PER_SCENE, 4):
        middle = start + dice.choice((4, 5))
        end = middle + dice.choice((3, 4))
        cuts.append(("\n".join(turns[start:middle]), "\n".join(turns[middle:end])))
    return cuts


def write_episodes(count: int, carelessness: float, dice: random.Random) -> list[tuple[str, str]]:
    """The windows of `count` episodes, in order."""
    return [
        window
        for _ in range(count)
        for thing in dice.sample(THINGS, SCENES_PER_EPISODE)
        for window in windows(write_scene(thing, carelessness, dice), dice)
    ]


def write_scripts(folder: Path, seed: int = 0) -> dict[str, int]:
    """Writes `train.jsonl` ({prompt, completion}) and `prompts.jsonl` ({prompt}); returns their row counts.

    The same seed gives the same bytes. No context of `prompts.jsonl` occurs twice or in `train.jsonl`.
    """
    dice = random.Random(seed)
    drafts = write_episodes(TRAIN_EPISODES, CARELESSNESS, dice)
    seen = {context for context, _ in drafts}
    finished = dict(write_episodes(PROMPT_EPISODES, 0.0, dice))
    prompts = [context for context in finished if context not in seen]
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(
        folder / "train.jsonl",
        [
            {"prompt": _prompt(context), "completion": [{"role": "assistant", "content": answer}]}
            for context, answer in drafts
        ],
    )
    _write_rows(folder / "prompts.jsonl", [{"prompt": _prompt(context)} for context in prompts])
    return {"train": len(drafts), "prompts": len(prompts)}


def _prompt(context: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": context}]


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
