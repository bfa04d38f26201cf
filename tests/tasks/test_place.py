"""The engines of embedded places: one place's own, or shared by those of a sweep."""

import httpx
import pytest

from nothing_gpt.config import PlaceSettings, Settings
from tasks.place import EmbeddedPlace, sharing_engines

pytestmark = pytest.mark.usefixtures("work")


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


def judge_of_a_place() -> str:
    """Opens a place, asks for its judge, and closes it."""
    with EmbeddedPlace(Settings(place=PlaceSettings())) as place:
        url = place.judge().connect()
        assert answers(url)
    return url


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models").is_success
    except httpx.ConnectError:
        return False


def test_a_places_engines_end_with_it() -> None:
    assert not answers(judge_of_a_place())


def test_places_that_share_have_the_same_engines_until_the_last_is_done() -> None:
    with sharing_engines():
        first = judge_of_a_place()
        assert answers(first)
        assert judge_of_a_place() == first
    assert not answers(first)
    assert not answers(judge_of_a_place())
