"""What a user did that cannot work, said in one line."""


class InputError(ValueError):
    """Bad input from outside: a path, a recipe, a flag, a file.

    The message is one line that says what is wrong, where, and what to do. The command line prints it and
    ends with exit status 2; a library user catches it as a `ValueError`.
    """
