"""The one exception for mistakes of the person at the keyboard."""


class UserError(Exception):
    """Bad input, told in one line: what was wrong, the value, and what to do.

    The command line prints the message and exits with code 2; nothing has been overwritten when
    it is raised. Mistakes of the program itself raise Python's own exceptions.
    """
