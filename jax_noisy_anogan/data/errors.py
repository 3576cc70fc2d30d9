"""The one error that the data room raises on purpose."""

from __future__ import annotations

from jax_noisy_anogan.errors import UserError


class DataError(UserError, ValueError):
    """A source file, folder, split or record is missing or unusable; the message is one line."""
