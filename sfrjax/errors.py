"""The one exception type that the command line turns into a single sentence."""


class SfrjaxError(ValueError):
    """Something in the user's input is wrong; the message names it and says what to do about it."""
