"""The data report: every figure with the sentence that explains it, and a page of its own for a data folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.config import JudgeSettings
from nothing_gpt.preferences import read_judged, write_pairs
from nothing_gpt.records import write_jsonl
from nothing_gpt.report.__main__ import main, report_on
from nothing_gpt.report.data import data_decision, data_figures, data_plots
from nothing_gpt.report.page import render_data_page
from tests.report import samples
from tests.report.test_page import SCRIPT, Page
from tests.samples import prompt

SETTINGS = JudgeSettings(min_pairs=10)
TEXTS = ["[PIP] A long way off.", "[PIP] No.", "[OONA] Maybe."]


def page(warnings: Sequence[str] = ()) -> str:
    return render_data_page(samples.data_quality(), (270, 29), samples.pairs(50), list(warnings), samples.people())


def vote(order: list[int], reason: str = "2 is flat") -> dict[str, Any]:
    return {"order": order, "best": 0, "worst": 1, "tie": False, "reason": reason, "model": "judge-1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the guide's command for the judge leaves."""
    votes = [vote([0, 1, 2]), vote([2, 1, 0])]
    rows = [
        {"prompt": prompt(f"scene {number}").messages, "completions": TEXTS, "votes": votes} for number in range(60)
    ]
    failed = {"prompt": prompt("hard").messages, "completions": TEXTS, "failed": "no usable verdict"}
    write_jsonl(tmp_path / "judged.jsonl", [*rows, failed])
    write_pairs(read_judged(tmp_path / "judged.jsonl"), tmp_path, SETTINGS)
    return tmp_path


def test_every_figure_explains_itself() -> None:
    figures = {figure.label: figure for figure in data_figures(samples.data_quality(), samples.people())}
    assert all(figure.note.endswith(".") and "\n" not in figure.note for figure in figures.values())
    assert figures["Longer one chosen"].interval == "[0.474, 0.587]"
    assert figures["Longer one chosen"].note.endswith("0.5 is no length bias (p = 0.31).")
    assert figures["Best by place"].value == "34% / 33% / 32%"
    assert "33% each is no liking for places (p = 0.69 on first votes)" in figures["Best by place"].note
    assert figures["Length gap"].value == "+9.8"
    assert "(21% of chosen, 44% of rejected)" in figures["Completions cut"].note
    assert figures["Agreement with people on the best"].value == "0.620"
    assert figures["Tokens, judge"].note == "670,000 read and 120,000 written; cost $0.50."


def test_a_panels_models_are_named_with_their_agreement() -> None:
    data = samples.data_quality() | {"agreement_by_model": {"a": 0.8, "b": 0.6}, "models_agreement": 0.55}
    figures = {figure.label: figure for figure in data_figures(data)}
    assert "(80% of a, 60% of b)" in figures["Agreement of the two orders"].note
    assert figures["Agreement of the models"].value == "0.550"


def test_of_no_data_there_are_neither_figures_nor_plots() -> None:
    assert data_figures({}) == []
    assert data_plots({}) == []


def test_the_headline_says_how_many_pairs_there_are_and_whether_the_limits_are_kept() -> None:
    good = data_decision(samples.data_quality(), (270, 29), [])
    assert (good.tone, good.headline) == ("good", "Data: 299 pairs from 336 sets of completions")
    assert good.details == ("270 pairs to train on, 29 to validate; 40 sets dropped; all stated limits are kept.",)
    assert data_decision(samples.data_quality(), (270, 29), ["too few"]).tone == "open"


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page(["judge.min_pairs: too few"])
    parsed = Page(text)
    assert parsed.open == []
    assert (parsed.count("h1"), parsed.count("script")) == (1, 1)
    assert "http://" not in text
    assert "https://" not in text
    sections = re.findall(r'<section [^>]*\bid="(\w+)"', text)
    assert sections == ["decision", "advice", "plots", "data", "pairs"]
    targets = [attributes["href"] or "" for tag, attributes in parsed.elements if tag == "a"]
    assert [target.removeprefix("#") for target in targets] == ["advice", "plots", "data", "pairs"]


def test_fifty_pairs_can_be_read_side_by_side_with_the_judges_reasons_and_searched() -> None:
    text = page()
    assert text.count('<article class="example"') == 50
    assert "<output>50</output> shown of 299" in text
    assert text.count("shown chosen as 3 and rejected as 1: 3 keeps every voice") == 50
    assert 'type="search"' in text


@pytest.mark.parametrize("part", ["prompt", "chosen", "rejected", "reason", "drop", "character", "model", "warning"])
def test_no_text_becomes_markup(part: str) -> None:
    data, pairs, warnings = {**samples.data_quality(), "chosen_lengths": []}, samples.pairs(1), list[str]()
    match part:
        case "prompt" | "chosen" | "rejected":
            pairs[0][part] = [{"role": "user", "content": SCRIPT}]
        case "reason":
            pairs[0]["reasons"] = [SCRIPT]
        case "drop":
            data["drops"] = {SCRIPT: 1}
        case "character":
            data["characters_chosen"] = {SCRIPT: 1}
        case "model":
            data["agreement_by_model"] = {SCRIPT: 0.5, "b": 0.4}
        case "warning":
            warnings = [SCRIPT]
    text = render_data_page(data, (1, 0), pairs, warnings)
    parsed = Page(text)
    assert "&lt;script&gt;" in text
    assert (parsed.count("script"), parsed.count("img"), parsed.open) == (1, 0, [])


def test_a_data_folders_page_is_made_of_the_guides_files(folder: Path) -> None:
    text = report_on(folder, SETTINGS)
    assert "Data:</span> 60 pairs from 61 sets of completions" in text
    assert "all stated limits are kept" in text
    assert "judge-1, shown chosen as 1 and rejected as 2: 2 is flat" in text
    assert "people" not in text
    assert text == report_on(folder, SETTINGS)


def test_hand_labels_beside_the_files_add_the_agreement_with_people(folder: Path) -> None:
    labels = [
        {"prompt": prompt(f"scene {number}").messages, "completions": TEXTS, "best": number % 2, "worst": 2}
        for number in range(10)
    ]
    write_jsonl(folder / "human.jsonl", labels)
    assert "10 sets, 10 of 10 labels matched" in report_on(folder, SETTINGS)


def test_pairs_that_are_not_those_of_the_judged_sets_are_a_warning(folder: Path) -> None:
    kept = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(kept[1:]))
    assert "hold 59 pairs, but judged.jsonl makes 60" in report_on(folder, SETTINGS)


def test_the_command_writes_the_page_beside_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"Report: {folder / 'report.html'}" in capfd.readouterr().err
    assert (folder / "report.html").read_text() == report_on(folder, JudgeSettings())


@pytest.mark.parametrize("name", ["judged.jsonl", "train.jsonl", "val.jsonl"])
def test_a_missing_file_is_one_clear_line(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink()
    monkeypatch.setattr("sys.argv", ["report", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder / name}: cannot read it")
