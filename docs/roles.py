"""References in docstrings, such as those of Sphinx, as links of the site."""

import re
from typing import Any

import griffe

ROLE = re.compile(r':(?:attr|class|data|func|meth|mod):`~?(?P<name>[\w.]+)`')


class Roles(griffe.Extension):
    """Make links of the roles in docstrings, where what they name has a place in the site."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(
                lambda match: link(match['name'], obj), obj.docstring.value
            )


def link(name: str, obj: griffe.Object) -> str:
    """A link to `name` as it is understood within `obj`; code, if it leads nowhere."""
    try:
        path = name if name.startswith('itpn_mm.') else obj.resolve(name)
    except griffe.NameResolutionError:
        return f'`{name}`'
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
