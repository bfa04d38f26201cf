"""A person uses Prefect's UI as `make ui` shows it, in Chromium. The flow is real; it trains nothing and asks fakes."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate

from flows.dpo import dpo_pipeline
from nothing_gpt.config import Settings, TrainingSettings
from nothing_gpt.serve.registry import read_registry
from tests.fake_endpoint import fails
from tests.flows.browser import CHROMIUM, Person, person
from tests.flows.deployed import GROUPS, faked, held, parameters, repeated
from tests.flows.fakes import Engines, engines, judge
from tests.flows.ui import NAME, PASSWORD, UI

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Engines]:
    with engines(tmp_path) as running:
        yield running


@pytest.fixture
def client(ui: UI, place: Engines) -> Iterator[SyncPrefectClient]:
    """Of a server whose deployment `embedded` runs in the place, one request after the other."""
    with ui.client() as client:
        asked = parameters(place, sampling__concurrency=1)
        client.update_deployment(faked(client)["embedded"].id, DeploymentUpdate(parameters=asked))
        yield client


@pytest.fixture
def ada(ui: UI) -> Iterator[Person]:
    """Somebody who is logged in."""
    with person(ui.url) as ada:
        ada.log_in(f"{NAME}:{PASSWORD}")
        yield ada


def test_she_fills_in_the_form_follows_the_run_approves_and_reads_the_report(
    client: SyncPrefectClient, place: Engines, ada: Person
) -> None:
    ada.open_deployment("embedded")
    ada.open_form()
    explained = inspect.getdoc(dpo_pipeline) or ""
    for group in GROUPS:
        text = explained.split(f"    {group}: ")[1].splitlines()[0]
        assert text in ada.field(group).inner_text()
    prompts, training, gate = (ada.field(name) for name in ("prompts", "training", "gate"))
    beta = ada.field("Beta", training)
    assert str(TrainingSettings.model_fields["beta"].description) in beta.inner_text()
    assert "(> 0, ≤ 10)" in beta.inner_text()
    assert beta.locator("input").input_value() == "0.1"
    losses = get_args(TrainingSettings.model_fields["loss_type"].annotation)
    assert ada.choices(ada.field("Loss Type", training)) == [*losses]

    limit = ada.field("Limit", prompts)
    limit.get_by_text("int", exact=True).click()
    ada.fill(limit, "30")
    ada.choose(ada.field("Approval", gate), "required")
    with held(place, 10):
        name = ada.submit()
        ada.open_run(name)
        ada.sees("Artifacts", "generate: 3 of 30")
    ada.sees("Task Runs", "judge · 30 sets · 2 votes")
    ada.sees_state("Suspended")
    ada.open_answer("The candidate passed the gate. May it replace the starting adapter?")
    ada.choose(ada.field("Decision"), "approve")
    ada.fill(ada.field("By"), "Ada")
    ada.fill(ada.field("Reason"), "funnier")
    ada.press("Submit")
    ada.sees_state("Completed")
    ada.reads_artifact("dpo-report", "✅ Promoted")

    (run,) = (found for found in client.read_flow_runs() if found.name == name)
    given = {name: run.parameters[name] for name in GROUPS}
    wished = place.settings(sampling__concurrency=1, prompts__limit=30, gate__approval="required")
    assert (Settings.model_validate(given), run.parameters["preset"]) == (wished, None)  # untouched is as it was
    (version,) = read_registry(place.store).versions
    assert version.approval
    assert (version.approval.by, version.approval.reason) == ("Ada", "funnier")


def test_a_wrong_value_is_refused_with_its_field(client: SyncPrefectClient, ada: Person) -> None:
    before = len(client.read_flow_runs())
    ada.open_deployment("embedded")
    ada.open_form()
    ada.fill(ada.field("Beta", ada.field("training")), "-1")
    ada.press("Submit")
    ada.reads(
        "Validation failed for field 'training.beta'. Failure reason: -1 is less than or equal to the minimum of 0"
    )
    assert len(client.read_flow_runs()) == before


def test_a_failed_run_says_why_and_goes_on_when_she_presses_retry(
    client: SyncPrefectClient, place: Engines, ada: Person
) -> None:
    (embedded,) = (found for found in client.read_deployments() if found.name == "embedded")
    client.update_deployment(embedded.id, DeploymentUpdate(parameters=embedded.parameters | {"until": "pairs"}))
    place.judge.answer = lambda request: fails(401, "no")
    ada.open_deployment("embedded")
    ada.open_run(ada.quick_run())
    ada.sees_state("Failed")
    ada.sees("Logs", "the key is refused (401 no); set OPENAI_API_KEY for a judge or SERVE_API_KEY for vLLM")
    assert "Traceback" not in ada.page.inner_text("body")
    place.judge.answer = judge
    ada.press("Retry")
    ada.reads("This will retry flow run")
    ada.press("Retry")
    ada.sees_state("Completed")
    assert repeated(place) == 0
