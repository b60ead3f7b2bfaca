"""Where settings come from: defaults < `torpor.toml` < environment < command line, each value checked on its way in.

An unknown key is an error in every source: a setting that is spelled wrong must not silently be a default.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from tomllib import TOMLDecodeError, loads
from typing import Any, Literal, Union, get_args, get_origin

from torpor.config import Secret, Settings
from torpor.errors import SettingError

ENVIRONMENT_PREFIX = "TORPOR_"
CONFIG_VARIABLE = "TORPOR_CONFIG"
APP_ID_VARIABLE = "TORPOR_APP_ID"
APP_SECRET_VARIABLE = "TORPOR_APP_SECRET"  # noqa: S105  the variable's name
TURN_KEY_ID_VARIABLE = "TORPOR_TURN_KEY_ID"
TURN_KEY_TOKEN_VARIABLE = "TORPOR_TURN_KEY_TOKEN"  # noqa: S105  the variable's name
BUILD_VARIABLE = "TORPOR_EXTENSIONS"  # setup.py's
DEFAULT_FILE = Path("torpor.toml")

_TABLES = {"configured_apps", "parties"}
"""Parts of `Settings` that are no sections of leaves: names an operator chooses."""

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One leaf of the tree: its names in each source, its type and its text."""

    section: str
    name: str
    type: Any
    field: Field[Any]

    @property
    def key(self) -> str:
        """Dotted name, as `http.port`."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """Name in the environment, as `TORPOR_HTTP_PORT`."""
        return f"{ENVIRONMENT_PREFIX}{self.section}_{self.name}".upper()

    @property
    def flag(self) -> str:
        """Name on the command line, as `--http-port`."""
        return f"--{self.section}-{self.name}".replace("_", "-")

    @property
    def is_secret(self) -> bool:
        """Whether it holds secrets: it has no flag, since others can read a command line, and is never printed."""
        return self.is_table or Secret in (self.type, *get_args(self.type))

    @property
    def is_table(self) -> bool:
        """Whether it is a table of the file, names to secrets, and has no variable of its own."""
        return get_origin(self.type) is Mapping

    @property
    def text(self) -> str:
        """What it does, one line."""
        return str(self.field.metadata["text"])


def all_settings() -> Iterator[Setting]:
    """Every leaf, in the order of declaration."""
    for section, section_type in typing.get_type_hints(Settings).items():
        if section in _TABLES:
            continue
        hints = typing.get_type_hints(section_type)
        for leaf in fields(section_type):
            yield Setting(section, leaf.name, hints[leaf.name], leaf)


def load(
    *,
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    parties: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force.

    Args:
        file: the TOML file; `None` means `TORPOR_CONFIG`, else `torpor.toml` in the working directory if it is there.
        environment: `os.environ`.
        flags: dotted key to text, from the command line.
        parties: name to class, from the command line; takes the place of the file's.

    Raises:
        SettingError: a key is unknown, or a value or a combination of values cannot work.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    apps: dict[str, Secret] = {}
    if (path := chosen_file(file, environment)) is not None:
        _read_file(path, values, apps, sources)
    _read_environment(environment, values, apps, sources)
    known = {setting.key: setting for setting in all_settings()}
    for key, text in flags.items():
        values[key] = _from_text(known[key], text, known[key].flag)
        sources[key] = known[key].flag
    if parties:
        values["parties"] = parties
    settings = _build(values, apps)
    for key, reason in settings.problems():
        raise SettingError(key, sources.get(key, "settings"), reason)
    return settings


def chosen_file(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The TOML file that `load` reads, if any."""
    if file is not None:
        return file
    if text := environment.get(CONFIG_VARIABLE):
        return Path(text)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _read_file(path: Path, values: dict[str, Any], apps: dict[str, Secret], sources: dict[str, str]) -> None:
    try:
        document = loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingError("file", str(path), str(reason)) from error
    known = {setting.key: setting for setting in all_settings()}
    for section, table in document.items():
        if not isinstance(table, dict):
            raise SettingError(section, str(path), "unknown key; settings live in sections such as [http]")
        if section == "apps":
            apps |= _secret_table("apps", table, str(path))
            sources |= {f"apps.{app_id}": str(path) for app_id in table}
            continue
        if section == "parties":
            values["parties"] = _party_table(table, str(path))
            sources |= {f"parties.{name}": str(path) for name in table}
            continue
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in known:
                raise SettingError(key, str(path), "unknown key")
            values[key] = _checked(known[key], value, str(path))
            sources[key] = str(path)
            if known[key].is_table:
                sources |= {f"{key}.{entry}": str(path) for entry in value}


def _party_table(table: Mapping[str, Any], source: str) -> dict[str, str]:
    for name, target in table.items():
        if not isinstance(target, str) or not target.partition(":")[2]:
            raise SettingError(f"parties.{name}", source, "a party is a string such as 'module:Class'")
    return dict(table)


def _secret_table(key: str, table: Any, source: str) -> dict[str, Secret]:
    if not isinstance(table, dict):
        raise SettingError(key, source, "not a table of names and secrets")
    for name, secret in table.items():
        if not isinstance(secret, str):
            raise SettingError(f"{key}.{name}", source, "a secret is a string")
    return {name: Secret(secret) for name, secret in table.items()}


def _read_environment(
    environment: Mapping[str, str], values: dict[str, Any], apps: dict[str, Secret], sources: dict[str, str]
) -> None:
    known = {setting.variable: setting for setting in all_settings() if not setting.is_table}
    pairs = {APP_ID_VARIABLE, APP_SECRET_VARIABLE, TURN_KEY_ID_VARIABLE, TURN_KEY_TOKEN_VARIABLE}
    special = {CONFIG_VARIABLE, BUILD_VARIABLE} | pairs
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in special:
            continue
        if variable not in known:
            raise SettingError(variable, "environment", "unknown variable")
        setting = known[variable]
        values[setting.key] = _from_text(setting, text, variable)
        sources[setting.key] = variable
    for entry, secret in _pair(environment, APP_ID_VARIABLE, APP_SECRET_VARIABLE, "apps"):
        apps[entry] = secret
        sources[f"apps.{entry}"] = APP_SECRET_VARIABLE
    for entry, secret in _pair(environment, TURN_KEY_ID_VARIABLE, TURN_KEY_TOKEN_VARIABLE, "turn.keys"):
        values["turn.keys"] = {**values.get("turn.keys", {}), entry: secret}
        sources[f"turn.keys.{entry}"] = TURN_KEY_TOKEN_VARIABLE


def _pair(
    environment: Mapping[str, str], id_variable: str, secret_variable: str, key: str
) -> Iterator[tuple[str, Secret]]:
    entry, secret = environment.get(id_variable), environment.get(secret_variable)
    if (entry is None) != (secret is None):
        raise SettingError(key, "environment", f"{id_variable} and {secret_variable} go together")
    if entry is not None and secret is not None:
        yield entry, Secret(secret)


def _build(values: Mapping[str, Any], apps: Mapping[str, Secret]) -> Settings:
    sections: dict[str, dict[str, Any]] = {}
    parties = values.get("parties", {})
    for key, value in values.items():
        if key == "parties":
            continue
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    hints = typing.get_type_hints(Settings)
    return Settings(
        **{section: hints[section](**given) for section, given in sections.items()},
        configured_apps=types.MappingProxyType(dict(apps)),
        parties=types.MappingProxyType(dict(parties)),
    )


def _options(of: Any) -> tuple[Any, bool]:
    """The type without `None`, and whether `None` was allowed."""
    if get_origin(of) in (Union, types.UnionType):
        inner = [argument for argument in get_args(of) if argument is not type(None)]
        return inner[0], True
    return of, False


def _from_text(setting: Setting, text: str, source: str) -> Any:
    """A value from the environment or the command line. Lists are separated by commas; empty text is absence."""
    of, optional = _options(setting.type)
    if optional and not text:
        return None
    if get_origin(of) is tuple:
        parts = [part for part in (part.strip() for part in text.split(",")) if part]
        return _checked(setting, parts, source)
    value: Any = text
    if of is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise SettingError(setting.key, source, f"{text!r} is neither true nor false")
        value = text.lower() in _TRUE
    elif of in (int, float):
        try:
            value = of(text)
        except ValueError:
            raise SettingError(setting.key, source, f"{text!r} is not {_NOUNS[of]}") from None
    return _checked(setting, value, source)


_NOUNS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def _checked(setting: Setting, value: Any, source: str) -> Any:
    """`value` as the setting's type and within its bounds."""
    of, _ = _options(setting.type)
    if get_origin(of) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise SettingError(setting.key, source, "not a list of strings")
        return tuple(map(Secret, value)) if setting.is_secret else tuple(value)
    if setting.is_table:
        return _secret_table(setting.key, value, source)
    if of is Secret:
        if not isinstance(value, str):
            raise SettingError(setting.key, source, "a secret is a string")
        return Secret(value)
    if get_origin(of) is Literal:
        if value not in get_args(of):
            raise SettingError(setting.key, source, f"{value!r} is none of {', '.join(get_args(of))}")
        return value
    if of is Path:
        if not isinstance(value, str) or not value:
            raise SettingError(setting.key, source, "not a path")
        return Path(value)
    if of is float and type(value) is int:
        value = float(value)
    if type(value) is not of:
        raise SettingError(setting.key, source, f"{value!r} is not {_NOUNS[of]}")
    if of in (int, float):
        _check_bounds(setting, value, source)
    return value


def _check_bounds(setting: Setting, value: float, source: str) -> None:
    least, most = setting.field.metadata["least"], setting.field.metadata["most"]
    # `not (a <= b)` also refuses NaN.
    if (least is not None and not (least <= value)) or (most is not None and not (value <= most)) or value != value:
        span = f"at least {least}" if most is None else f"between {least} and {most}"
        raise SettingError(setting.key, source, f"{value} is not {span}")


def describe(settings: Settings, *, apps: Sequence[str]) -> str:
    """The settings as a TOML file that `load` reads, secrets masked; what is absent is a comment."""
    lines: list[str] = []
    section = ""
    for setting in all_settings():
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        value = getattr(getattr(settings, section), setting.name)
        if value is None:
            lines.append(f"# {setting.name} is not set: {setting.text}")
        else:
            lines.append(f"{setting.name} = {_to_toml(value)}")
    lines += ["", "[apps]", *(f'{app_id} = "***"' for app_id in apps)]
    if settings.parties:
        lines += ["", "[parties]", *(f"{name} = {_to_toml(target)}" for name, target in settings.parties.items())]
    return "\n".join(lines)


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_to_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_to_toml(name)} = {_to_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Secret):
        return '"***"'
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
