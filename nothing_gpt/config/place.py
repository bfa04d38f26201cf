"""Where the engines are and where results are kept."""

from typing import Literal

from pydantic import Field

from nothing_gpt.config.group import Group


class GKESettings(Group):
    """The cluster on which training runs as a Job, and what the Job asks for."""

    context: str | None = Field(
        default=None, description="Context of your kubeconfig; empty: the current one, or the cluster we run in."
    )
    namespace: str = Field(default="nothing-gpt", description="Namespace of the Job, its secrets and service account.")
    manifest: str = Field(
        default="k8s/train-job.yaml", description="The Job's manifest, which these settings and the run fill in."
    )
    image: str | None = Field(
        default=None,
        description="Training image, best by digest; empty: the one in `registry` with this project's content, built "
        "by Cloud Build if it is not there yet.",
    )
    registry: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]+-docker\.pkg\.dev/[^/:@]+/[^/:@]+$",
        description="Artifact Registry repository for images, LOCATION-docker.pkg.dev/PROJECT/REPOSITORY.",
    )
    scheduling_minutes: float = Field(
        default=30, gt=0, le=1440, description="Longest wait for a node; spot machines may be sold out for hours."
    )
    running_hours: float = Field(
        default=6, gt=0, le=168, description="Longest time from the Job's start to its end, preemptions included."
    )


class ModalSettings(Group):
    """The Modal app that trains; `modal deploy deployments/modal_app.py` puts it there."""

    app: str = Field(default="nothing-gpt", description="Name of the deployed app.")
    volume: str = Field(default="nothing-gpt", description="Volume for data, checkpoints and adapters.")
    environment: str | None = Field(default=None, description="Modal environment; empty: your account's default.")
    running_hours: float = Field(
        default=12,
        gt=0,
        le=168,
        description="Longest wait for a training, the wait for a GPU and preemptions included; then it is cancelled, "
        "and its checkpoints stay.",
    )


class PlaceSettings(Group):
    """Where the engines are and where results are kept. Addresses and paths change no result, so no fingerprint holds
    them; the seed does, and so do the base model and the starting adapter, which are known by more than their paths."""

    kind: Literal["embedded", "local", "gke", "modal"] = Field(
        default="embedded",
        description="embedded: everything is made and started here, nothing is needed. local: your vLLM and judge, "
        "training here. gke: as local, with results in the bucket and training as a Job on a spot L4. modal: as "
        "local, with training on Modal.",
    )
    data: str = Field(default="data", description="Folder for the store, scratch files, logs and Prefect's database.")
    bucket: str | None = Field(
        default=None,
        description="Store for other machines too, gs://BUCKET/PREFIX. gke: everything is kept there. Elsewhere: push "
        "and pull move artifacts there and back.",
    )
    gcp_block: str | None = Field(
        default=None,
        description="Prefect block with the bucket's credentials, gcp-credentials/NAME or gcs-bucket/NAME; "
        "empty: Application Default Credentials, which are also Workload Identity.",
    )
    serve_url: str | None = Field(
        default=None, description="local: address of vLLM, such as http://127.0.0.1:8000/v1; empty: SERVE_URL."
    )
    replicas: list[str] = Field(
        default=[],
        description="local: addresses of further vLLMs that serve the same, each its own and none behind a balancer; "
        "runs ask only the one of serve_url, a promotion or a rollback reaches all.",
    )
    adapters_path: str | None = Field(
        default=None,
        description="gke: folder in which a vLLM elsewhere finds the adapters that its fetcher brings, such as "
        "/mnt/adapters of k8s/serve.yaml; empty: vLLM sees the data folder under the same path.",
    )
    judge_url: str | None = Field(default=None, description="local: address of the judge; empty: OPENAI_BASE_URL.")
    base_model: str | None = Field(
        default=None, description="local: base model that is trained, a folder or a hub name."
    )
    base_revision: str | None = Field(
        default=None,
        description="local: commit of the base model where that is a hub name, which may change there at any time. "
        "A private model wants HF_TOKEN in the environment.",
    )
    sft_adapter: str | None = Field(
        default=None, description="local: folder of the starting adapter; empty: SFT_ADAPTER_PATH."
    )
    gpu_usd_per_hour: float = Field(
        default=0.0,
        ge=0,
        description="Price of the training machine, for the cost report. An L4 spot is about 0.25 to 0.35.",
    )
    gke: GKESettings = GKESettings()
    modal: ModalSettings = ModalSettings()
    seed: int = Field(default=0, ge=0, description="embedded: seed of the sample scripts and of the base model.")
