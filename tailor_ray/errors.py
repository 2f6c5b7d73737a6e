"""Error families and the exit code each one maps to: 2 the user's input, 3 stopped and can go on, 1 a bug of ours.

Every class is constructed from one message, so instances cross process borders (pickle) unchanged.
User errors are `ValueError`s: the caller passed something that a rule forbids, and the message says the
value, the rule and the setting to change. They exit with 2 and without a traceback.
"""

import re

_USER_INFO = re.compile(r"(\w://)[^/@\s'\"]+@")
_SECRET = re.compile(
    r"""([?&]\w*(?:secret|key|token|password|passwd|credential|signature)\w*=)[^&\s'"]+""", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text with *** in place of what may be a key: user info of URIs, and secrets in their queries."""
    return _SECRET.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


class TailorError(Exception):
    """Base of all errors raised on purpose; what else is raised is put in words by `observe.faults`."""

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


class StageError(Stopped):
    """A stage failed for a reason that retrying did not cure; with the cause mended the same command goes on."""


class CorruptionError(TailorError):
    """A committed file no longer has the hash that its manifest records; the message names the file."""

    exit_code = 2


class LeaseLost(Stopped):
    """Another driver took the run over, or the lease could not be renewed; nothing may be written any more."""


class Bug(TailorError):
    """A fault of this package."""
