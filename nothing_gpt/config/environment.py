"""What the environment may hold, secrets among it."""

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Environment(BaseSettings):
    """What the environment may hold: the guide's variables. Secrets stay `SecretStr`."""

    model_config = SettingsConfigDict(extra="ignore")

    serve_url: str = "http://127.0.0.1:8000/v1"
    serve_api_key: SecretStr | None = None
    openai_base_url: str = "https://generativelanguage.googleapis.com/v1beta/openai/"
    openai_api_key: SecretStr | None = None
    judge_model: str | None = None
    dpo_data_path: Path = Path("/vol/data/dpo")
    sft_adapter_path: Path = Path("/vol/adapters/nothing-gpt-sft")
    adapter_path: Path = Path("/vol/adapters/nothing-gpt")
    base_model: str | None = None
    base_revision: str | None = None
