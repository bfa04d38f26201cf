"""The deployments: what they run with, their forms, and what is provided for them."""

import sys
from typing import get_args

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import EventTrigger

from flows.provision import LIMITS, provision
from nothing_gpt.config import Settings
from nothing_gpt.loading import PRESETS, Preset, compose, load_settings
from tests.chain.processes import REPOSITORY
from tests.flows.deployed import (
    GROUPS,
    written,
)


@pytest.mark.parametrize("name", ["embedded", "nightly", "sweep"])
def test_the_parameters_are_those_of_the_settings_file(name: str) -> None:
    parameters = {key: value for key, value in written()[name]["parameters"].items() if key in GROUPS}
    groups = Settings.model_validate(parameters)
    assert groups == load_settings(REPOSITORY / "deployments" / "embedded.yaml")


def test_the_gke_deployments_parameters_fit_together() -> None:
    parameters = dict(written()["gke"]["parameters"])
    settings = compose(load_settings(), parameters.pop("preset"), [])
    assert settings.training == load_settings(PRESETS / "recommended.yaml").training
    assert Settings.model_validate(parameters).place.kind == "gke"


def test_the_form_offers_every_preset() -> None:
    assert set(get_args(Preset)) == {file.stem for file in PRESETS.glob("*.yaml")}


def test_a_preset_wins_over_the_groups_and_overrides_win_over_both() -> None:
    groups = load_settings(overrides=["training.beta=0.3", "training.seed=7", "judge.votes=3"])
    settings = compose(groups, "noisy_judge", ["training.learning_rate=1e-4"])
    assert (settings.training.beta, settings.training.seed, settings.training.learning_rate) == (0.1, 7, 1e-4)
    assert (settings.training.loss_type, settings.judge.votes) == ("robust", 2)


# At a server.


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_the_deployments_are_there_with_their_limits_and_their_form(deployed: dict[str, DeploymentResponse]) -> None:
    assert {name: found.tags for name, found in deployed.items()} == {
        "embedded": ["dpo", "embedded"], "nightly": ["dpo", "embedded", "nightly"], "gke": ["dpo", "gke"],
        "rollback": ["dpo", "embedded", "rollback"], "rollback-gke": ["dpo", "gke", "rollback"],
        "sweep": ["dpo", "embedded", "sweep"],
    }  # fmt: skip
    for found in deployed.values():
        assert found.description
        assert found.global_concurrency_limit
        assert found.global_concurrency_limit.limit == 1
    nightly = deployed["nightly"]
    assert nightly.concurrency_options
    assert nightly.concurrency_options.collision_strategy == "CANCEL_NEW"
    assert [schedule.active for schedule in nightly.schedules] == [False]
    schema = nightly.parameter_openapi_schema or {}
    for group in GROUPS:
        fields = schema["definitions"][Settings.model_fields[group].annotation.__name__]["properties"]  # type: ignore[union-attr]
        assert all("description" in field or "$ref" in field for field in fields.values()), group
    assert schema["definitions"]["TrainingSettings"]["properties"]["beta"]["exclusiveMinimum"] == 0
    assert "replaced as a whole" in schema["properties"]["training"]["description"]
    schema = deployed["rollback"].parameter_openapi_schema or {}
    assert schema["required"] == ["reason"]
    assert "why" in schema["properties"]["reason"]["description"].lower()


@pytest.mark.prefect
@pytest.mark.timeout(600)
def test_what_is_provided_stays_as_a_person_changed_it(client: SyncPrefectClient) -> None:
    provision(client)
    before = {found.name: found.id for found in client.read_automations()}
    (dead,) = client.read_automations_by_name("nothing-gpt: a dead run is marked")
    assert isinstance(dead.trigger, EventTrigger)
    assert "prefect.flow-run.Suspended" in dead.trigger.expect  # it waits for a person, and has no process
    client.upsert_global_concurrency_limit_by_name("judge", 5)
    provision(client)
    assert {found.name: found.id for found in client.read_automations()} == before
    assert client.read_global_concurrency_limit_by_name("judge").limit == 5
    client.upsert_global_concurrency_limit_by_name("judge", LIMITS["judge"])
    pools = {pool.name: pool for pool in client.read_work_pools()}
    assert {name: pool.type for name, pool in pools.items()} == {"local": "process", "gke": "process"}
    commands = {name: pool.base_job_template["variables"]["properties"]["command"] for name, pool in pools.items()}
    assert commands["local"]["default"] == f"{sys.executable} -m prefect.engine"
    assert commands["gke"]["default"] == "python -m prefect.engine"  # this machine's is not in the image
