"""What mkdocstrings shows of docstrings: cross-references as links."""

import re
from textwrap import dedent

import griffe

# Several names with one description; a plain space would make the second one the type of the first.
NAMES = re.compile(r"^( +\w+(?:, \w+)+):", re.MULTILINE)
# griffe would take the beginning of the text for a type.
RETURNS = re.compile(r"^Returns:\n((?:    .*\n?|\n)+)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


def linked(match, place):
    short, name = match.groups()
    try:
        target = place.resolve(name) if "." not in name else name
    except griffe.NameResolutionError:
        target = name
    shown = name.rsplit(".", 1)[-1] if short else name
    # Optional: what no page documents stays plain text.
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'


class References(griffe.Extension):
    """Sphinx's roles, as Python's own help shows them best, become links of the site."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            place = obj if obj.is_module or obj.is_class else obj.parent
            text = ROLE.sub(lambda m: linked(m, place), obj.docstring.value)
            text = NAMES.sub(lambda m: m[0].replace(", ", ",\xa0"), text)
            text = RETURNS.sub(lambda m: f"**Returns:** {dedent(m[1])}\n", text)
            # Several names at once would get the type of the attribute before; arguments do not.
            obj.docstring.value = re.sub(r"^Attributes:$", "Args:", text, flags=re.MULTILINE)
