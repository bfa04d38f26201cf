"""How far generation is from the ideal, and what it costs in CPU and memory.

    python -m benchmarks.generation --prompts 1021 --completions 3 --latency 0.2 --slots 32 --jitter 0.8

`serve_s` is from the first request to the last answer, `ideal_s` all drawn latencies divided by the slots, `restart_s`
a process that finds every row kept but its artifact gone, `cached_s` one that finds the artifact.
"""

from benchmarks.measure import main

if __name__ == "__main__":
    main("generation", slots=32)
