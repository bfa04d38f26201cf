"""The images of `deployments/docker`, for a person: what `kubectl apply` is to be given, and what a run would find."""

from nothing_gpt.config import Settings
from nothing_gpt.errors import FatalError
from nothing_gpt.workshops import bucket_workshop
from tasks.credentials import place_credentials

try:
    from nothing_gpt.jobs.image import ensure
except ModuleNotFoundError as missing:
    raise FatalError(f"place.gke.registry: needs the package {missing.name}; pip install 'nothing-gpt[gcp]'") from None


def image_reference(settings: Settings, name: str) -> str:
    """The digest reference of the image NAME in `place.gke.registry` with this checkout's content.

    Raises:
        FatalError: no registry or bucket is named; what is to be built goes to Cloud Build through the bucket. And as
            `ensure`. TransientError as this.
    """
    place = settings.place
    if place.gke.registry is None:
        raise FatalError(
            "place.gke.registry is not set; name the Artifact Registry repository, "
            "LOCATION-docker.pkg.dev/PROJECT/REPOSITORY"
        )
    credentials = place_credentials(place)
    return ensure(name, place.gke.registry, bucket_workshop(place, credentials).store.uri, credentials)
