"""What all errors that a user can act on have in common."""

from __future__ import annotations


class UserError(Exception):
    """Its message is one line that says what is wrong and what to do; commands print only that.

    Attributes:
      exit_code: of a command that ends with it.
      all_stop: whether every process of the run ends with it, at the same point.
    """

    exit_code = 2
    all_stop = False


class DataError(UserError, ValueError):
    """A source file, folder, split or record is missing or unusable; the message is one line."""
