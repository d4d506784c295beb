"""What ends a command early, apart from mistakes of the program itself."""


class UserError(Exception):
    """Bad input, told in one line: what was wrong, the value, and what to do.

    The command line prints the message and exits with code 2; nothing has been overwritten when
    it is raised. Mistakes of the program itself raise Python's own exceptions.
    """


class OutOfMemory(UserError):
    """The memory of a GPU was full. The message says of what there could be less."""


class Diverged(UserError):
    """Training met a loss that is not finite. The message says where, and what to try."""


class Stopped(Exception):
    """A signal ended the run before its budget did; a checkpoint holds what was done."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number
