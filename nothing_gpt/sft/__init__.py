"""The small supervised stage that makes a starting adapter."""
