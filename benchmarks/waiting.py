"""What a flow pays for a training Job elsewhere: its own time until the pod runs, CPU and memory while it waits.

    KUBECONFIG=... python -m benchmarks.waiting [--seconds 60] [--namespace default]

Wants a cluster with a free node for k8s/train-job.yaml, such as a test cluster whose node runs pods as processes; in
place of training the pod prints a line a second. Memory is what is added to a process that has Prefect imported. On
two busy cores, with a control plane beside it: first line after 0.8 s, 0.11 % of a core, 24 MiB.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import prefect  # noqa: F401  what is there anyway, and measured apart
import psutil
import yaml

from nothing_gpt.config import GKESettings

MANIFEST = Path(__file__).parents[1] / "k8s" / "train-job.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="how long the Job runs")
    parser.add_argument("--namespace", default="default", help="with the secrets that the manifest wants")
    arguments = parser.parse_args()
    process = psutil.Process()
    before = process.memory_info().rss

    from nothing_gpt.jobs.gke import GKE

    job = yaml.safe_load(MANIFEST.read_text())
    script = f"for i in $(seq {arguments.seconds}); do echo step $i; sleep 1; done"
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["sh", "-c", script]
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "job.yaml"
        manifest.write_text(yaml.safe_dump(job))
        settings = GKESettings(namespace=arguments.namespace, manifest=str(manifest))
        began, runs = time.monotonic(), threading.Event()
        figures: dict[str, float] = {}

        def line(_: str) -> None:
            if not runs.is_set():
                runs.set()
                figures["first line after s"] = time.monotonic() - began
                figures["cpu"], figures["since"] = sum(process.cpu_times()[:2]), time.monotonic()

        say = lambda message: print(f"{time.monotonic() - began:6.2f} s  {message}", flush=True)  # noqa: E731
        GKE(settings, say, line).run(f"waiting-{os.getpid()}", "gs://nowhere/waiting", "nothing:latest")
        cpu = sum(process.cpu_times()[:2]) - figures["cpu"]
        print(f"first line of the log after {figures['first line after s']:.2f} s")
        print(f"waiting: {cpu / (time.monotonic() - figures['since']):.2%} of a core")
        print(f"memory: {(process.memory_info().rss - before) / 2**20:.0f} MiB more than with Prefect alone")


if __name__ == "__main__":
    main()
