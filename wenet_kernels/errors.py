"""The one exception of this project."""


class WenetError(Exception):
    """A mistake in what was asked for, or a condition that its user can mend.

    The message is one line that names the thing and the mend; the commands print it and exit with code 2.
    """
