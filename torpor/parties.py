"""Which classes are rooms: from `module:Class` to the class, and from the command line to names.

    app:Chat            class `Chat` of the module `app`, found from the working directory
    app.py:Chat         the same, by its file, wherever that is
    app.py              every `Server` that the file defines
    lobby=app:Lobby     served as /parties/lobby/<room>

Without a name the first class on the command line is `main`, any other is called as its class is: `ChatRoom2` becomes
`chat-room2`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from partykit_compat import Server, party_name
from torpor.errors import StartRefused


def name_parties(arguments: Sequence[str]) -> dict[str, str]:
    """Return party name to `module:Class` for the arguments of a command line.

    Raises:
        StartRefused: code that cannot be loaded, or two classes of one name.
    """
    parties: dict[str, str] = {}
    for argument in arguments:
        name, _, target = argument.rpartition("=")
        place, _, class_name = target.partition(":")
        found = [class_name] if class_name else _servers_of(place, import_module(place))
        if name and len(found) != 1:
            raise StartRefused(f"{argument}: {place} defines {', '.join(found)}: name each, as in {name}={place}:Class")
        for class_name in found:
            chosen = name or ("main" if not parties else party_name(class_name.rpartition(".")[2]))
            if chosen in parties:
                raise StartRefused(f"two parties are called {chosen!r}: name them, as in NAME={place}:{class_name}")
            parties[chosen] = f"{place}:{class_name}"
    return parties


def load_parties(parties: Mapping[str, str]) -> dict[str, type[Server]]:
    """Return party name to class.

    Raises:
        StartRefused: code that cannot be loaded, or is no `Server`.
    """
    return {name: _load(name, target) for name, target in parties.items()}


def _load(name: str, target: str) -> type[Server]:
    place, _, class_name = target.partition(":")
    found: object = import_module(place)
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Server)):
        raise StartRefused(f"party {name}: {target} is not a class derived from partykit_compat.Server")
    return found


def import_module(place: str) -> ModuleType:
    """Return a module by its name, found from the working directory, or by its file.

    Raises:
        StartRefused: it is not there or its code raises; the message says where.
    """
    file = Path(place).resolve()
    folder, module = (file.parent, file.stem) if place.endswith(".py") else (Path.cwd(), place)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        at = "" if missing else f" ({_where(error)})"
        text = error.msg if isinstance(error, SyntaxError) else error
        raise StartRefused(f"{place} cannot be loaded: {type(error).__name__}: {text}{at}") from error
    if place.endswith(".py") and found.__file__ != str(file):
        raise StartRefused(f"{place} cannot be loaded: {found.__file__} has the same module name, rename one")
    return found


def _where(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _servers_of(place: str, module: ModuleType) -> list[str]:
    found = [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Server) and value.__module__ == module.__name__
    ]
    if not found:
        raise StartRefused(f"{place} defines no class derived from partykit_compat.Server")
    return found
