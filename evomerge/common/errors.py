"""The errors that a user can cause, under one root.

Every message says what is wrong, why, and what to write instead.
"""


class EvomergeError(Exception):
    """Root of all errors that evomerge raises on purpose; the command prints its message without a traceback."""


class ConfigError(EvomergeError):
    """A setting does not exist, has the wrong type, or contradicts another."""


class CheckpointError(EvomergeError):
    """A model directory cannot be read, or does not belong with the others."""


class NotFinite(EvomergeError, ArithmeticError):
    """What a model says are no finite numbers, so it has no score."""


class CommandError(EvomergeError):
    """A command that scores a model has failed, or has not answered as it must, so the model has no score."""


class SpaceError(EvomergeError):
    """The coefficient space that was asked for cannot be built."""


class MergeError(EvomergeError):
    """No model can be built from these coefficients."""


class SuiteError(EvomergeError):
    """A suite of experts and tasks is missing, incomplete or damaged."""


class LogError(EvomergeError):
    """The trial log is damaged, belongs to another search, or is in use by another process."""


class ReplayMismatch(LogError):
    """The searcher asks for other points than those that the log holds."""


class LiveModelError(EvomergeError):
    """A user's code has changed the live model so that it cannot be put back: nothing more can be scored."""
