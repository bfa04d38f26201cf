"""A finished artifact copied from one store to another, verified at both ends. What it was made from is not copied."""

from concurrent.futures import ThreadPoolExecutor

from nothing_gpt.artifacts import KEY, MANIFEST, Artifact, Workshop, lease
from nothing_gpt.errors import FatalError

FILES_AT_ONCE = 8


def copy(key: str, source: Workshop, target: Workshop) -> Artifact:
    """Brings the artifact at `<stage>/<fingerprint>` into the target; `reused` where it was there already.

    Its files are checked against the manifest's SHA-256 before they leave, and by the stores on the way; the manifest
    goes last, so that an interrupted copy is no artifact. Of two that copy at once one waits and finds it there. One
    that was made in the target too stays, unless fewer rows failed in the source's, as when it is made anew.

    Raises:
        FatalError: no artifact's key; the source has no whole one; the target has one of its own.
        TransientError: a store cannot be reached.
    """
    if not KEY.fullmatch(key):
        raise FatalError(f"{key}: no artifact's key; give STAGE/FINGERPRINT, as `nothing-gpt report --json` shows them")
    stage, fingerprint = key.split("/")
    manifest = source.manifest(key)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        try:
            # `find` takes one file after the other; after this it finds copies of all of them here.
            list(pool.map(source.store.fetch, [f"{key}/{name}" for name in manifest.files] if manifest else []))
        except FileNotFoundError:
            manifest = None
        found = source.find(stage, fingerprint)
        if manifest is None or found is None or found.digest != manifest.digest:
            raise FatalError(f"{source.store.uri}/{key}: not there, or damaged; make it again, or copy another")
        with lease(target.store, f"leases/{stage}-{fingerprint}"):
            there = target.find(stage, fingerprint)
            if there and there.digest == found.digest:
                return there
            if there and target.counts(there).get("failed", 0) <= manifest.failed:
                raise FatalError(
                    f"{target.store.uri}/{key}: made there too, with other content, which stays; use that one"
                )

            def send(name: str) -> None:
                target.store.upload(source.file(found, name), f"{key}/{name}")

            list(pool.map(send, manifest.files))
            target.store.write(f"{key}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
    return Artifact(target.store.uri, stage, fingerprint, found.digest)
