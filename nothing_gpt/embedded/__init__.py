"""The place that needs nothing: sample scripts, a tiny model, a local vLLM and an offline judge."""
