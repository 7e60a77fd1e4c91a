"""The one kind of error that is meant for people."""


class UserError(Exception):
    """Something the user can put right.

    The message is one line: what was wrong, where, and the remedy. `cvae` and the stages print it without a
    traceback and exit with 2; any other exception is a defect of ours and keeps its traceback.
    """
