"""The error whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """Something the user gave or can mend; the message says what was given, what was expected and what to do."""
