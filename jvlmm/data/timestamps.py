"""The form in which a prompt tells times: a format of seconds such as `{:.1f}`, with text around it."""

import re

ALLOWED = "text of up to 64 characters with one number of seconds in it, such as '{:.1f}' or '<{:.0f} s>'"
_LONGEST = 64
# A width and digits of up to two figures: a format of two thousand million characters would be made at once.
_FORM = re.compile(r"[^{}]*\{0?(:0?[0-9]{0,2}(\.[0-9]{1,2})?[efgEFG]?)?\}[^{}]*", re.DOTALL)


def tells_times(form: str) -> bool:
    """Whether `form` is such a format, by its text alone and then by its work."""
    if len(form) > _LONGEST or not _FORM.fullmatch(form):
        return False
    return form.format(0.0) != form.format(1.0)
