# Prefect's worker with the flows. It runs the whole chain of the place `gke`; training itself has the image train.
#
#     docker build -f deployments/docker/worker.Dockerfile -t TAG .
#     docker run TAG                                         a worker of the process pool gke
#     docker run --entrypoint python TAG -m flows --help     the program nothing-gpt
#
# It holds no torch, so the place `embedded` does not work in it. It does hold what the training image is made of, so a
# flow here finds or builds that image as one in a checkout does.
FROM python:3.11-slim-bookworm

RUN --mount=type=bind,source=locks/worker.txt,target=/tmp/worker.txt \
    pip install --no-cache-dir --no-deps --only-binary=:all: --requirement /tmp/worker.txt

# `data` is the flows' scratch folder, below the folder they run in.
RUN useradd --uid 10001 --user-group --create-home nothing-gpt \
    && install --directory --owner=10001 --group=10001 /app/data

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app
WORKDIR /app
COPY . .

USER 10001:10001
ENTRYPOINT ["python", "-m", "prefect", "worker", "start"]
CMD ["--pool", "gke", "--type", "process"]
