"""How far judging is from the ideal: two calls a set. Figures as in `benchmarks.generation`.

python -m benchmarks.judging --prompts 1021 --latency 0.2 --slots 16 --jitter 0.8
"""

from benchmarks.measure import main

if __name__ == "__main__":
    main("judging", slots=16)
