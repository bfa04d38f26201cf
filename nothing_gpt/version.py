"""What this program is, for machines that do its work elsewhere and must be the same."""

from pathlib import Path

from nothing_gpt.records import digest, file_digest


def code_digest() -> str:
    """A digest of this package's Python files."""
    root = Path(__file__).parent
    return digest({file.relative_to(root).as_posix(): file_digest(file) for file in sorted(root.rglob("*.py"))})[:16]
