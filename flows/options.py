"""What the program's commands share: their options, and what these open."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.server import prefect_server
from nothing_gpt.artifacts import Workshop
from nothing_gpt.config import Settings
from nothing_gpt.loading import load_settings
from nothing_gpt.workshops import open_workshop

EMBEDDED = Path(__file__).parents[1] / "deployments" / "embedded.yaml"
DEFAULT = [EMBEDDED]

out = Console(highlight=False, soft_wrap=True)
servers = ExitStack()
"""A Prefect server, where a command needs a block of it; the program closes it."""

SettingsFiles = Annotated[
    list[Path],
    typer.Option(
        "--settings", help="YAML file of settings; a further one changes what it names. Default: the embedded place."
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="group.key=value, such as training.beta=0.05.")]


def load(
    files: list[Path], overrides: list[str] | None, prompts: list[str] | None = None, seed: int | None = None
) -> Settings:
    """The settings of a command. Raises as `load_settings`."""
    given = list(overrides or [])
    if prompts:
        given.append(f"prompts.paths={json.dumps(prompts)}")
    settings = load_settings(files, given, seed)
    if settings.place.gcp_block:
        servers.enter_context(prefect_server(settings))
    return settings


def workshop_of(settings: Settings) -> Workshop:
    """The place's artifacts. Raises as `open_workshop` and `place_credentials`."""
    if settings.place.gcp_block is None:
        return open_workshop(settings.place)
    from tasks.credentials import place_credentials

    return open_workshop(settings.place, place_credentials(settings.place))
