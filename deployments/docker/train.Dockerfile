# The image in which training runs as a Kubernetes Job: `python -m nothing_gpt.dpo.train --store gs://... --job ...`.
#
#     docker build -f deployments/docker/train.Dockerfile -t TAG .
#
# A run has it built by itself, in Cloud Build (nothing_gpt/jobs/image.py). Packages come before the source, so that a
# change of the source makes one small layer. torch's CUDA 13 needs an NVIDIA driver of version 580 or newer on the node.
FROM python:3.11-slim-bookworm

# The compiler is no left-over: Triton, in which TRL's loss is written, compiles its driver interface at its first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The packages keep their bytecode: without it their imports take 18 s of a core instead of 8, at every start.
RUN --mount=type=bind,source=locks/train.txt,target=/tmp/train.txt \
    pip install --no-cache-dir --no-deps --only-binary=:all: --requirement /tmp/train.txt

# With a name and a home: torch asks for the user's name, and caches are kept below the home.
RUN useradd --uid 10001 --user-group --create-home nothing-gpt

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app
WORKDIR /app
COPY nothing_gpt nothing_gpt

USER 10001:10001
# Python itself is process 1, so that SIGTERM saves a checkpoint.
ENTRYPOINT ["python", "-m", "nothing_gpt.dpo.train"]
CMD ["--help"]
