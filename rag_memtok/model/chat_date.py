"""The day that chat templates take for today's: always the same one.

Some write it, and a frame must not change overnight: memories are bound to it.
"""

PINNED_DATE = "1 January 2026"
# in place of transformers' own, which asks the clock; a template cannot be given a function
PINNED_CLOCK = """{%- macro strftime_now(form) -%}
{{ form | replace("%-d", "1") | replace("%d", "01") | replace("%m", "01") | replace("%B", "January")
| replace("%b", "Jan") | replace("%Y", "2026") | replace("%y", "26") | replace("%A", "Thursday")
| replace("%a", "Thu") | replace("%H", "00") | replace("%M", "00") | replace("%S", "00") }}
{%- endmacro -%}"""


def on_pinned_day(template: object) -> str | None:
    """A chat template with its clock stopped; None: it has none, and is taken as it is."""
    has_clock = isinstance(template, str) and "strftime_now" in template
    return f"{PINNED_CLOCK}{template}" if has_clock else None
