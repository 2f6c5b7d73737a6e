"""Error families and the exit code each one maps to.

Every class is constructed from one message, so instances cross process borders (pickle) unchanged.
User errors are `ValueError`s: the caller passed something that a rule forbids, and the message says the
value, the rule and the setting to change. They exit with 2 and without a traceback.
"""


class TailorError(Exception):
    """Base of all errors raised on purpose; anything else is a bug."""

    exit_code = 1


class UserError(TailorError, ValueError):
    """The user's input is wrong; the message says the value, the rule and the setting to change."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration file or override breaks a rule."""


class DataError(UserError):
    """A data file or one of its rows breaks a rule."""


class ModelError(UserError):
    """A model folder cannot be used as a student."""


class RunFolderError(UserError):
    """The run folder belongs to another configuration or to another live driver."""


class TeacherAccessError(UserError):
    """The teacher's endpoint refuses us for the whole run: bad URL, key or model name."""


class Stopped(TailorError):
    """The run stopped cleanly and the same command goes on: budget, quota or signal."""

    exit_code = 3


class StageError(TailorError):
    """A stage failed for a reason that retrying did not cure."""


class CorruptionError(TailorError):
    """A committed file no longer has the hash that its manifest records; the message names the file."""


class LeaseLost(TailorError):
    """Another driver took the run over; nothing may be written any more."""
