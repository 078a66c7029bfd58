"""Import of the user's own code by name."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from functools import partial
from pathlib import Path
from typing import Any

from neuralfuse.errors import ConfigError


def code_digest(found: object, reference: str = "") -> str:
    """Return a digest of the source file in which an object was defined; empty where there is none.

    Args:
        found: The object. Of a partial or a decorated function, the function inside counts.
        reference: The ``package.module:name`` it was loaded by. The module's file counts too, if it is another one.
    """
    while isinstance(found, partial):
        found = found.func
    found = inspect.unwrap(found) if callable(found) else found
    try:
        source = inspect.getsourcefile(found)  # type: ignore[arg-type]  # refused below
    except TypeError:  # an instance: its class
        source = inspect.getsourcefile(type(found))
    module = sys.modules.get(reference.partition(":")[0])
    files = dict.fromkeys(one for one in (source, getattr(module, "__file__", None)) if one)
    if not files:
        return ""
    return hashlib.sha256(b"".join(Path(one).read_bytes() for one in files)).hexdigest()[:16]


def load(reference: str, *, what: str) -> Any:
    """Import ``package.module:name``, also from the working folder. This runs the module's code.

    Args:
        reference: The name to import.
        what: What the object is, for the error message.

    Raises:
        ConfigError: the import fails.
    """
    module, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # `python -m` does this, a console script does not
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the code is the user's, and may raise anything
        raise ConfigError(f"{what} {reference} must be importable as package.module:name: {error}.") from error
