"""The served model: the vLLM command, the registry of adapter versions, promotion and rollback."""
