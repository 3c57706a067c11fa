"""Errors that are addressed to the user."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: the message says what was got, where, and what to do.

    The command line prints the message alone, without a traceback.
    """


class ConfigError(UserError):
    """The configuration is wrong; the message names each offending key by its path."""


class MissingExtraError(UserError, ImportError):
    """An optional library is not installed; the message names the extra that installs it."""
