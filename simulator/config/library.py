"""Built-in models, clusters and scenarios: YAML files beside the code, found by name."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from pathlib import Path

from simulator.config.wording import listed, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
FILE_ENDINGS = (".yaml", ".yml", ".json")


class Kind(StrEnum):
    """What can be built in as a file."""

    MODELS = "models"
    CLUSTERS = "clusters"
    SCENARIOS = "scenarios"


def _folders(kind: Kind) -> tuple[Path, ...]:
    """Returns where the files of a kind are: in an installed package, and in a checkout."""
    if kind is Kind.MODELS:
        return (_PACKAGE / "model" / "library",)
    folder = "cluster_profiles" if kind is Kind.CLUSTERS else "scenarios"
    return (_PACKAGE / "data" / folder, _PACKAGE.parent / folder)


@cache
def _files(kind: Kind) -> dict[str, Path]:
    folder = next((folder for folder in _folders(kind) if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def list_builtin(kind: Kind) -> list[str]:
    """Returns the names of a kind, sorted."""
    return list(_files(kind))


def builtin_path(kind: Kind, name: str) -> Path | None:
    """Returns the file of a built-in name, None if there is none."""
    return _files(kind).get(name)


def looks_like_path(text: str) -> bool:
    """Returns whether a reference is meant as a file: it has a folder or an ending."""
    return "/" in text or "\\" in text or text.endswith(FILE_ENDINGS)


def shown_path(path: Path) -> str:
    """Returns the path for messages: relative to the working directory if it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def suggestion(kind: Kind, name: str) -> str:
    """Returns the mend for a name that is not built in."""
    guess = nearest(name, list_builtin(kind))
    if guess:
        return f"did you mean {guess}? (`shardsim list {kind}` names all)"
    return f"write the path of a YAML file, or one of {listed(list_builtin(kind))}"
