"""The one kind of error that is meant for people."""


class UserError(Exception):
    """A problem that the user can solve.

    Its message is one line: what was wrong, where, and the remedy. `cvae` and the stages print it without a traceback
    and exit with 2. Any other exception is a defect of this project and keeps its traceback.
    """
