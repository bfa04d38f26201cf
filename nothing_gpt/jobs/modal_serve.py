"""The vLLM on Modal, `deployments/modal_app.py`, brought to another adapter: that is put on the volume, and the app is
deployed anew with its path, which every later start loads too. This has not been run against Modal itself.
"""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nothing_gpt.adapters import CONFIG, WEIGHTS
from nothing_gpt.config.place import ModalSettings
from nothing_gpt.errors import FatalError
from nothing_gpt.jobs import modal as training
from nothing_gpt.progress import say

ADAPTERS = "/vol/adapters"
"""Adapters as the app sees them, each in <stage>/<fingerprint>."""
DEPLOYED = "adapters/deployed"
"""Path of the adapter that was deployed last. It is written before: what was cut off shows as not what was meant."""
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Endpoint:
    """The app's vLLM, on its base model."""

    settings: ModalSettings
    base: str
    revision: str | None

    def deployed(self) -> str | None:
        """Path of the adapter that was deployed last; None where we deployed none. Raises as `modal_run`."""
        with training.clear_errors(self.settings):
            try:
                return b"".join(self._volume().read_file(DEPLOYED)).decode()
            except FileNotFoundError:
                return None

    def deploy(self, folder: Path) -> None:
        """Deploys the app with the adapter in the folder, <stage>/<fingerprint> of our store.

        Raises:
            FatalError: `modal deploy` fails, or as `modal_run`; TransientError as this.
        """
        key = f"{folder.parent.name}/{folder.name}"
        path = f"{ADAPTERS}/{key}"
        say(f"deploying the vLLM on Modal with {key}")
        with training.clear_errors(self.settings), self._volume().batch_upload(force=True) as batch:
            for name in (CONFIG, WEIGHTS):
                batch.put_file(folder / name, f"/adapters/{key}/{name}")
        with training.clear_errors(self.settings), self._volume().batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(path.encode()), f"/{DEPLOYED}")
        environment = {**os.environ, "BASE_MODEL": self.base, "ADAPTER_PATH": path}
        if self.revision:
            environment["BASE_REVISION"] = self.revision
        if self.settings.environment:
            environment["MODAL_ENVIRONMENT"] = self.settings.environment
        command = [sys.executable, "-m", "modal", "deploy", "deployments/modal_app.py"]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise FatalError(f"`{training.DEPLOY}` failed: {last}")

    def _volume(self) -> Any:
        named: dict[str, Any] = {"environment_name": self.settings.environment}
        return training.modal.Volume.from_name(self.settings.volume, create_if_missing=True, **named)
