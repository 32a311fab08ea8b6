"""An extension of griffe: it gives mkdocstrings our docstrings as Markdown."""

from __future__ import annotations

from typing import Any

import griffe

from docsite.markup import block


class Markup(griffe.Extension):
    """Converts every docstring when it has been read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = block(obj.docstring.value)
