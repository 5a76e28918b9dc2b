"""The errors a user can cause and mend: one line that names the thing and the remedy."""


class JvlmmError(Exception):
    """Base of every error whose message is written for the user; the command line prints it without a traceback."""


class ConfigError(JvlmmError):
    """A misspelt, mistyped or impossible option."""


class VideoError(JvlmmError):
    """A video or image that cannot be read within its limits."""


class DataError(JvlmmError):
    """A row, dataset or cache that cannot be used."""


class CheckpointError(JvlmmError):
    """Weights or training state that are missing, damaged or of another shape."""
