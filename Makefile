# `make` alone lists what there is.
#   PYTHON=python3.12     another interpreter for the environments
#   TORCH_INDEX=URL       PyTorch's CPU wheel index, where pip is not configured for it
#   SEED=1                make demo: with other scripts, another model and other samples
#   PORT=4201             make ui: on another port than 4200

bin := .venv/bin
export PYTHON TORCH_INDEX
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo ui down test lint image-check format env server-env envs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: envs ## the whole chain on this machine, on real engines, from sample scripts to a better served adapter
	$(bin)/nothing-gpt run --settings deployments/embedded.yaml $(if $(SEED),--seed $(SEED))

ui: envs ## Prefect's UI with the deployments and a worker on this machine; prints its address
	@$(bin)/python -m flows.ui up $(if $(PORT),--port $(PORT))

down: ## ends what `make ui` started; all runs are kept
	@$(bin)/python -m flows.ui down

test: envs lint ## static checks, fast tests, and one small embedded chain
	$(bin)/pytest -q
	$(bin)/pytest -q -m chain

lint: env ## ruff, pyright, hadolint, and which module may import which
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/pyright
	$(bin)/lint-imports --no-logo
	$(bin)/hadolint deployments/docker/*.Dockerfile

image-check: env ## whether the images' packages can be installed (asks the package index, two minutes)
	@scripts/image-locks check

format: env ## put the code into ruff's form
	$(bin)/ruff check --fix
	$(bin)/ruff format

env: ## the project's environment (.venv), from locks/project.txt
	@scripts/setup-env project

server-env: ## the vLLM server's environment (.venv-server), from locks/server.txt
	@scripts/setup-env server

envs:
	@scripts/setup-env project server

clean: ## removes the environments and caches; the runs in data/ stay
	rm -rf .venv .venv-server .venv*.lock .venv*.log *.egg-info build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
