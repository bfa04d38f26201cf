# vLLM on a GPU, ready for adapters to be loaded while it runs: nothing_gpt/serve/server.py, which becomes vLLM.
#
#     docker build -f deployments/docker/serve.Dockerfile -t TAG .
#     docker run --gpus all -e BASE_MODEL=... -e ADAPTER_PATH=... TAG --port 8000
#
# It is vLLM's own image with one folder added, since that is what its makers test: compiled kernels, and the compilers
# with which it makes more at run time. The version is that of locks/server.txt, on which the tests run on a CPU; what
# the folder imports is among vLLM's own requirements, so nothing is installed here.
FROM vllm/vllm-openai:v0.32.0

RUN useradd --uid 10001 --user-group --create-home nothing-gpt

ENV HOME=/home/nothing-gpt \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/app \
    VLLM_NO_USAGE_STATS=1
WORKDIR /app
COPY nothing_gpt nothing_gpt

USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "nothing_gpt.serve.server"]
