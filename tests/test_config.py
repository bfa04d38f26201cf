"""Settings: what is wrong is said in one line before anything starts, and secrets are nowhere."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from nothing_gpt.config import Environment, SamplingSettings, Settings
from nothing_gpt.errors import FatalError
from nothing_gpt.loading import load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def refused(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(FatalError) as error:
        load_settings(file, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_need_no_file() -> None:
    assert load_settings() == Settings()


def test_an_override_wins_over_the_file_and_the_file_over_the_default(file: Path) -> None:
    file.write_text("training: {beta: 0.3, learning_rate: 1e-4}")
    training = load_settings(file, ["training.beta=0.05"]).training
    assert (training.beta, training.learning_rate, training.max_length) == (0.05, 1e-4, 2048)


def test_a_later_file_changes_single_keys_of_an_earlier_one(file: Path, tmp_path: Path) -> None:
    file.write_text("training: {beta: 0.3, seed: 1}\nsampling: {temperature: 0.7}")
    later = tmp_path / "later.yaml"
    later.write_text("training: {beta: 0.2}")
    settings = load_settings([file, later])
    assert (settings.training.beta, settings.training.seed, settings.sampling.temperature) == (0.2, 1, 0.7)


def test_an_update_that_cannot_be_shared_by_the_processes_is_refused() -> None:
    assert load_settings(overrides=["training.gpus=2", "training.nodes=2"]).training.nodes == 2
    with pytest.raises(FatalError, match=r"=4 cannot be shared by gpus x nodes = 3 processes; set it to a multiple"):
        load_settings(overrides=["training.gpus=3"])


def test_label_smoothing_is_refused_where_the_loss_would_ignore_it() -> None:
    assert "label_smoothing is for loss_type=robust" in refused("training.label_smoothing=0.1")
    assert load_settings(None, ["training.label_smoothing=0.1", "training.loss_type=robust"])


@pytest.mark.parametrize("value", ["0.5", "-0.1", "guessed"])
def test_label_smoothing_out_of_bounds_is_refused(value: str) -> None:
    assert "training.label_smoothing" in refused(f"training.label_smoothing={value}", "training.loss_type=robust")


def test_a_disagreement_that_nobody_measures_is_refused() -> None:
    measured = ["training.label_smoothing=measured", "training.loss_type=robust"]
    assert load_settings(None, measured).training.label_smoothing == "measured"
    assert "needs judge.votes=2" in refused(*measured, "judge.votes=1")


def test_the_last_override_wins() -> None:
    assert load_settings(None, ["training.beta=0.2", "training.beta=0.3"]).training.beta == 0.3


def test_a_seed_sets_every_groups_seed_over_the_file(file: Path) -> None:
    file.write_text("sampling: {seed: 1}")
    settings = load_settings(file, (), seed=7)
    groups = [settings.prompts, settings.sampling, settings.judge, settings.training, settings.place]
    assert [group.seed for group in groups] == [7] * 5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainin.beta=1", "trainin: no such setting; did you mean training?"),
        ("training.betta=1", "training.betta: no such setting; did you mean beta?"),
        ("training.zzz=1", "training.zzz: no such setting; known: beta, loss_type"),
        ("judge.prices={m: {inptu: 1, output: 2}}", "judge.prices.m.inptu: no such setting; did you mean input?"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(override: str, said: str) -> None:
    assert said in refused(override)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("sampling.num_completions=1", "sampling.num_completions"),
        ("sampling.num_completions=99", "sampling.num_comp"),
        ("training.beta=0", "training.beta"),
        ("training.beta=.nan", "training.beta"),
        ("judge.votes=4", "judge.votes"),
        ("sampling.temperature=.nan", "sampling.temperature"),
        ("judge.val_ratio=1", "judge.val_ratio"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_with_its_name_and_value(override: str, name: str) -> None:
    said = refused(override)
    assert said.startswith(name)
    assert f"(given: {override.partition('=')[2].removeprefix('.')})" in said


@pytest.mark.parametrize(
    "override",
    [
        "training.beta=much",
        "sampling.num_completions=2.5",
        "sampling.seed=[1]",
        "training.loss_type=rpo",
        "training.gradient_checkpointing=maybe",
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(override: str) -> None:
    assert refused(override).startswith(override.partition("=")[0])


@pytest.mark.parametrize("override", ["training.beta", "beta=1", "=1", "training=1", ".beta=1", "training.=1"])
def test_an_override_in_another_form_is_refused(override: str) -> None:
    assert "write it as group.key=value" in refused(override)


@pytest.mark.parametrize("value", ["{", "[1", "'", "2024-13-45"])
def test_an_override_that_is_not_yaml_is_refused(value: str) -> None:
    assert refused(f"place.data={value}").startswith(f"--set place.data={value}: the value is not YAML")


def test_every_mistake_is_named_at_once() -> None:
    said = refused("training.beta=-1", "sampling.zzz=1")
    assert "training.beta" in said
    assert "sampling.zzz" in said


def test_a_missing_settings_file_is_refused(file: Path) -> None:
    assert refused(file=file) == f"{file}: cannot read the settings (No such file or directory); check the path"


@pytest.mark.parametrize(
    "data",
    [
        b"training: {beta: ",
        b"a: b: c",
        b"\xff\xfe\xfa\x00\xd8",
        b"training: {beta: \xe9}",
        b"prompts: {path: 2024-13-45}",
    ],
)
def test_a_settings_file_that_is_not_yaml_is_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert refused(file=file).startswith(f"{file}: not YAML")


@pytest.mark.parametrize("text", ["[1, 2]", "hello", "training: 3", "training:", "training: [beta]"])
def test_a_settings_file_that_is_no_mapping_of_groups_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    assert "expected groups of settings (prompts, sampling, " in refused(file=file)


def test_an_empty_settings_file_changes_nothing(file: Path) -> None:
    file.write_text("# nothing\n")
    assert load_settings(file) == Settings()


@pytest.mark.parametrize("kind", ["local", "gke", "modal"])
def test_a_chain_in_a_place_of_ones_own_needs_prompts_and_a_base(kind: str) -> None:
    given = [f"place.kind={kind}", "place.bucket=gs://bucket", "place.gke.image=image"]
    for lacking, added in (("prompts.paths: empty", "prompts.paths=[a.jsonl]"), ("place.base_model: empty", "")):
        with pytest.raises(FatalError, match=lacking):
            load_settings(None, given).check_chain()
        given.append(added)
    load_settings(None, [*filter(None, given), "place.base_model=base"]).check_chain()


def test_a_chain_on_gke_needs_a_bucket_and_an_image_or_where_to_put_one() -> None:
    given = ["place.kind=gke", "prompts.paths=[a.jsonl]", "place.base_model=base"]
    for lacking, added in (("place.bucket: not set", "place.bucket=gs://bucket"), ("place.gke.registry: not set", "")):
        with pytest.raises(FatalError, match=lacking):
            load_settings(None, given).check_chain()
        given.append(added)
    for image in ("place.gke.image=image", "place.gke.registry=europe-west4-docker.pkg.dev/project/repository"):
        load_settings(None, [*filter(None, given), image]).check_chain()


def test_an_embedded_chain_needs_nothing() -> None:
    Settings().check_chain()


def test_a_chain_elsewhere_than_on_gke_trains_on_one_machine() -> None:
    with pytest.raises(FatalError, match=r"training.nodes=2: place.kind=modal trains on one machine; set it to 1"):
        load_settings(overrides=["place.kind=modal", "training.nodes=2"]).check_chain()


def test_a_setting_within_a_group_of_a_group_can_be_given(file: Path) -> None:
    file.write_text("place: {kind: gke, gke: {namespace: mine, image: theirs}}")
    place = load_settings(file, ["place.gke.image=ours", "judge.prices.m={input: 1, output: 2}"]).place
    assert (place.gke.namespace, place.gke.image) == ("mine", "ours")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        SamplingSettings().temperature = 1.0


def test_secrets_are_in_no_repr_and_no_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("SERVE_API_KEY", "sk-secret")
    environment = Environment()
    assert environment.openai_api_key is not None
    assert environment.openai_api_key.get_secret_value() == "sk-secret"
    assert (
        "sk-secret" not in f"{environment!r} {environment} {environment.model_dump()} {environment.model_dump_json()}"
    )


def test_no_setting_takes_a_secret() -> None:
    """Groups reach fingerprints, logs and flow parameters, so a key in one of them is refused, and not repeated."""
    for group in Settings.model_fields:
        said = refused(f"{group}.api_key=sk-secret")
        assert said.startswith(f"{group}.api_key: no such setting")
        assert "sk-secret" not in said


def test_a_description_ends_with_the_bounds_which_prefects_form_does_not_show() -> None:
    fields = Settings.model_json_schema()["$defs"]
    assert fields["TrainingSettings"]["properties"]["beta"]["description"].endswith("wants 2 to 10. (> 0, ≤ 10)")
    assert fields["PromptsSettings"]["properties"]["limit"]["description"].endswith("empty: all. (≥ 1)")
    assert fields["SamplingSettings"]["properties"]["model"]["description"].endswith("stale.")
