"""The report on a data folder, as one HTML page that needs nothing outside itself.

    python -m nothing_gpt.report DATA_FOLDER

reads the guide's `judged.jsonl`, `train.jsonl` and `val.jsonl` there, and `human.jsonl` with hand labels where there is
one, and writes `report.html` beside them.
"""

import argparse
from pathlib import Path

from nothing_gpt.agreement import agreement_with_people, read_labels
from nothing_gpt.config import JudgeSettings
from nothing_gpt.errors import FatalError, exits_cleanly
from nothing_gpt.preferences import TRAIN, VAL, read_judged, sample_pairs
from nothing_gpt.progress import say
from nothing_gpt.quality import beyond_limits, measure
from nothing_gpt.records import read_jsonl
from nothing_gpt.report.page import MOST_EXAMPLES, render_data_page

JUDGED = "judged.jsonl"
HUMAN = "human.jsonl"
PAGE = "report.html"


def report_on(folder: Path, settings: JudgeSettings) -> str:
    """The page, as HTML. Raises FatalError where a file is missing or damaged."""
    judged, labels = folder / JUDGED, folder / HUMAN
    quality = measure(read_judged(judged))
    warnings = beyond_limits(quality, settings)
    train, val = (sum(1 for _ in read_jsonl(folder / name)) for name in (TRAIN, VAL))
    if train + val != quality["pairs"]:
        warnings.append(
            f"{TRAIN} and {VAL} hold {train + val:,} pairs, but {JUDGED} makes {quality['pairs']:,}, of which the "
            "figures and examples are: the files were edited, or are of different runs"
        )
    people = agreement_with_people(read_judged(judged), read_labels(labels)) if labels.is_file() else None
    examples = sample_pairs(read_judged(judged), MOST_EXAMPLES, settings.seed)
    return render_data_page(quality, (train, val), examples, warnings, people)


@exits_cleanly
def main() -> None:
    """Writes the page and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m nothing_gpt.report", description="The report on a data folder.")
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER", help=f"holds {JUDGED}, {TRAIN} and {VAL}")
    folder = parser.parse_args().folder
    page = report_on(folder, JudgeSettings())
    try:
        (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise FatalError(f"{folder / PAGE}: cannot be written ({error.strerror}); check the folder") from None
    say(f"Report: {folder / PAGE}")


if __name__ == "__main__":
    main()
