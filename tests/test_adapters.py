"""An adapter's files: what is not whole, finite and servable is refused in one line, before a server sees it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nothing_gpt.adapters import (
    CONFIG,
    METRICS,
    SERVED_RANKS,
    WEIGHTS,
    adapter_digest,
    changed_share,
    check_output,
    validate_adapter,
)
from nothing_gpt.errors import FatalError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
RANK, IN, OUT = 4, 6, 5


def tensors() -> dict[str, Any]:
    return {f"{MODULE}.lora_A.weight": torch.ones(RANK, IN), f"{MODULE}.lora_B.weight": torch.zeros(OUT, RANK)}


def save(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(tensors() if weights is None else weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(
        json.dumps(
            {"peft_type": "LORA", "r": RANK, "base_model_name_or_path": "base", "modules_to_save": None} | config
        )
    )
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save(tmp_path / "adapter")


@pytest.fixture
def base(tmp_path: Path) -> Callable[[int, int], Path]:
    def make(out: int, inner: int) -> Path:
        folder = tmp_path / f"base-{out}-{inner}"
        folder.mkdir()
        name = MODULE.removeprefix("base_model.model.") + ".weight"
        safetensors.save_file({name: torch.zeros(out, inner)}, folder / "model.safetensors")
        return folder

    return make


def refused(folder: Path, base: Path | None = None) -> str:
    with pytest.raises(FatalError) as error:
        validate_adapter(folder, base)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_adapter_is_described(adapter: Path, base: Callable[[int, int], Path]) -> None:
    found = validate_adapter(adapter, base(OUT, IN))
    assert (found.rank, found.base, found.parameters) == (RANK, "base", RANK * IN + OUT * RANK)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_refused(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    assert f"{name} is missing" in refused(adapter)
    with pytest.raises(FatalError, match=f"{name} is missing"):
        adapter_digest(adapter)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "not an adapter" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_truncated_weights_are_refused(adapter: Path, keep: int) -> None:
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:keep])
    assert "cut or damaged" in refused(adapter)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"LORA"', "\xff"])
def test_a_configuration_that_is_no_object_is_refused(adapter: Path, text: str) -> None:
    (adapter / CONFIG).write_bytes(text.encode("latin-1"))
    assert "not a JSON object" in refused(adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_single_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    weights = tensors()
    weights[f"{MODULE}.lora_B.weight"][3, 2] = value
    assert "lora_B.weight holds NaN or infinity" in refused(save(tmp_path / "adapter", weights))


def test_another_rank_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    said = refused(save(tmp_path / "adapter", r=8))
    assert f"lora_A.weight has rank {RANK}, but by r and rank_pattern of {CONFIG} it has 8" in said


def test_a_module_s_own_rank_is_its_rank(tmp_path: Path) -> None:
    own = {"self_attn.q_proj": RANK}
    assert validate_adapter(save(tmp_path / "adapter", r=2, rank_pattern=own)).rank == RANK
    assert f"{RANK}, but by r and rank_pattern" in refused(save(tmp_path / "other", r=2, rank_pattern={"k_proj": RANK}))


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"layer_replication": [[0, 2], [1, 3]]},
        {"alora_invocation_tokens": [5, 6]},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"bias": "all"},
        {"init_lora_weights": "pissa_niter_16"},
        {"init_lora_weights": "olora"},
    ],
)
def test_what_vllm_cannot_serve_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    ((name, value),) = config.items()
    assert f"{name} is {value!r}, which vLLM cannot serve" in refused(save(tmp_path / "adapter", **config))


@pytest.mark.parametrize("config", [{"bias": "none"}, {"init_lora_weights": "EVA"}, {"init_lora_weights": True}])
def test_what_vllm_serves_is_not(tmp_path: Path, config: dict[str, Any]) -> None:
    validate_adapter(save(tmp_path / "adapter", **config))


@pytest.mark.parametrize(
    "config", [{"peft_type": "IA3"}, {"peft_type": None}, {"r": None}, {"r": "4"}, {"rank_pattern": [4]}]
)
def test_what_is_no_lora_adapter_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    assert "not a LoRA adapter" in refused(save(tmp_path / "adapter", **config))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lm_head.weight", (OUT, RANK)),
        (f"{MODULE}.lora_magnitude_vector", (OUT,)),
        (f"{MODULE}.lora_B.weight", (RANK,)),
    ],
)
def test_a_tensor_that_is_no_lora_matrix_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    assert "is no LoRA matrix" in refused(save(tmp_path / "adapter", tensors() | {name: torch.zeros(shape)}))


@pytest.mark.parametrize(
    "config",
    [{"r": 0}, {"r": True}, {"lora_alpha": None}, {"lora_alpha": "8"}, {"lora_alpha": 0}, {"lora_alpha": float("nan")}],
)
def test_a_rank_or_a_scale_that_is_no_number_above_0_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    assert f"{next(iter(config))} is {next(iter(config.values()))!r}" in refused(save(tmp_path / "adapter", **config))


def test_an_adapter_for_another_task_is_refused(tmp_path: Path) -> None:
    assert "task_type is 'SEQ_CLS'" in refused(save(tmp_path / "adapter", task_type="SEQ_CLS"))
    validate_adapter(save(tmp_path / "text", task_type="CAUSAL_LM"))


@pytest.mark.parametrize(("kept", "lost"), [("lora_A", "lora_B"), ("lora_B", "lora_A")])
def test_half_a_pair_of_matrices_is_refused(tmp_path: Path, kept: str, lost: str) -> None:
    half = {name: tensor for name, tensor in tensors().items() if kept in name}
    assert f"has no {lost} beside it" in refused(save(tmp_path / "adapter", half))


def test_an_adapter_on_the_output_head_is_refused(tmp_path: Path) -> None:
    head = {name.replace(MODULE, "base_model.model.lm_head"): tensor for name, tensor in tensors().items()}
    assert "lm_head cannot be trained" in refused(save(tmp_path / "adapter", tensors() | head))


@pytest.mark.parametrize("keep", [0, 4, -1])
def test_a_cut_base_is_named(adapter: Path, base: Callable[[int, int], Path], keep: int) -> None:
    weights = base(OUT, IN) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(FatalError) as error:
        validate_adapter(adapter, weights.parent)
    assert str(error.value).startswith(f"{weights}: cannot be read (")
    assert "base model's weights are cut or damaged" in str(error.value)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    assert "holds no tensors" in refused(save(tmp_path / "adapter", {}))


@pytest.mark.parametrize(("out", "inner"), [(OUT + 1, IN), (OUT, IN + 1)])
def test_an_adapter_of_another_base_is_refused(
    adapter: Path, base: Callable[[int, int], Path], out: int, inner: int
) -> None:
    assert "made for another base model" in refused(adapter, base(out, inner))


def test_an_adapter_of_layers_that_the_base_does_not_have_is_refused(
    tmp_path: Path, base: Callable[[int, int], Path]
) -> None:
    weights = {name.replace("layers.0", "layers.9"): tensor for name, tensor in tensors().items()}
    assert "made for another base model" in refused(save(tmp_path / "adapter", weights), base(OUT, IN))


def test_an_adapters_digest_is_its_files_wherever_they_lie(tmp_path: Path) -> None:
    one, two = save(tmp_path / "one"), save(tmp_path / "two")
    (two / "README.md").write_text("a note")
    assert adapter_digest(one) == adapter_digest(two)
    assert adapter_digest(save(tmp_path / "three", base_model_name_or_path="other")) != adapter_digest(one)


def test_the_share_that_changed_is_counted_by_element(adapter: Path, tmp_path: Path) -> None:
    weights = tensors()
    weights[f"{MODULE}.lora_A.weight"][0, :] = 2.0
    assert changed_share(adapter, save(tmp_path / "after", weights)) == IN / (RANK * IN + OUT * RANK)
    assert changed_share(adapter, adapter) == 0


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_numbers_of_every_usual_type_are_read(tmp_path: Path, kind: str) -> None:
    small = {name: (tensor - 1.75).to(getattr(torch, kind)) for name, tensor in tensors().items()}
    plain = {name: tensor.float() for name, tensor in small.items()}
    one, other = save(tmp_path / "one", small), save(tmp_path / "other", plain)
    assert validate_adapter(one) == validate_adapter(other)
    assert changed_share(one, other) == changed_share(other, one) == 0
    small[f"{MODULE}.lora_B.weight"][2, 1] = float("-inf")
    assert "holds NaN or infinity" in refused(save(tmp_path / "bad", small))


def test_numbers_of_another_type_are_refused(tmp_path: Path) -> None:
    whole = {name: tensor.to(torch.int8) for name, tensor in tensors().items()}
    assert "holds numbers of type 'I8'; give one of F64, F32, F16, BF16" in refused(save(tmp_path / "adapter", whole))


def test_adapters_of_other_shapes_cannot_be_compared(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="cannot be compared"):
        changed_share(adapter, save(tmp_path / "after", {"x": torch.zeros(1)}))


@pytest.mark.parametrize("place", ["file", "file/out", "file/a/out"])
def test_an_adapter_s_place_that_can_be_no_folder_is_refused_before_training(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FatalError, match=r"ADAPTER_PATH: .*/file is a file; give the path of a folder"):
        check_output(tmp_path / place)
    (tmp_path / "empty").mkdir()
    for free in ("empty", "new", "new/out", "empty/../new"):
        assert check_output(tmp_path / free) == (tmp_path / free).resolve()


def test_a_folder_of_anything_but_an_adapter_of_ours_is_not_replaced(tmp_path: Path, adapter: Path) -> None:
    """It was emptied: a folder of adapters as well as one adapter that was not trained here."""
    for place in (tmp_path, adapter, adapter / ".." / "adapter"):
        with pytest.raises(FatalError, match=r"--out: .* holds something else than an adapter trained here"):
            check_output(place, name="--out")
    (adapter / METRICS).write_text("{}")
    assert check_output(adapter) == adapter


@pytest.mark.parametrize("place", ["adapter", "adapter/../adapter", "link", "."])
def test_what_is_read_is_not_replaced(tmp_path: Path, adapter: Path, place: str) -> None:
    (adapter / METRICS).write_text("{}")
    (tmp_path / "link").symlink_to(adapter)
    with pytest.raises(FatalError, match=r"is to be replaced, and .*adapter in it is read; give a new folder"):
        check_output(tmp_path / place, adapter)
    check_output(adapter / "new", adapter)


def test_a_rank_that_vllm_has_no_place_for_is_refused(tmp_path: Path) -> None:
    rank = SERVED_RANKS[-1] + 1
    name = "base_model.model.q_proj.lora_{}.weight"
    weights = {name.format("A"): torch.ones(rank, IN), name.format("B"): torch.ones(OUT, rank)}
    assert f"rank {rank}; vLLM serves ranks up to" in refused(save(tmp_path / "adapter", weights, r=rank))


@pytest.mark.parametrize("beside", ["notes.txt", "sub"])
def test_an_adapter_of_ours_with_something_else_beside_it_is_not_replaced(tmp_path: Path, beside: str) -> None:
    folder = save(tmp_path / "adapter")
    (folder / METRICS).write_text("{}")
    assert check_output(folder) == folder
    (folder / beside).mkdir()
    with pytest.raises(FatalError, match="holds something else"):
        check_output(folder)


def test_a_mount_point_is_not_replaced() -> None:
    with pytest.raises(FatalError, match="a mount point"):
        check_output(Path("/proc"))
