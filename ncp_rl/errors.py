"""`NCPError`: the base of all errors that tell a user what to do."""


class NCPError(Exception):
    """What a user asked for cannot be done; the message says what was expected, what came, and what to do.

    The commands print the message alone and exit with status 2. Any other exception is a fault of the program, and its
    traceback is shown.
    """
