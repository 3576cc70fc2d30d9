"""The one error that the data room raises on purpose."""

from __future__ import annotations


class DataError(ValueError):
    """A source file, folder, split or record is missing or unusable; the message is one line."""
