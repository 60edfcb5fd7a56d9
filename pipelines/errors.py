"""The two kinds of failure that a person meets, each with the exit code of the command that ends on it."""


class HarmonError(Exception):
    """Something could not be done. The message is one plain sentence: what, where, and what to do."""

    exit_code = 3


class ConfigurationError(HarmonError):
    """The request itself is wrong (recipe, option, argument), so trying again unchanged cannot help."""

    exit_code = 2
