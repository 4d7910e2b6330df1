"""The built-in cluster profiles: `cluster_profiles/*.yaml`, one machine a file."""

from __future__ import annotations

from pathlib import Path

import yaml

from simulator.cluster.spec import ClusterSpec

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / "data" / "cluster_profiles", _PACKAGE.parent / "cluster_profiles")
"""Where the profiles are in an installed wheel, and in a checkout."""


def profile_paths() -> dict[str, Path]:
    """Returns the files of the built-in clusters by name, sorted."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[-1])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_profile(name: str) -> ClusterSpec:
    """Returns a built-in cluster; scalars are read as text, so that a bare number is refused where a unit is due.

    Files of users are read by `simulator.config`, which keeps lines for its messages.

    Raises:
        KeyError: No built-in cluster has this name.
    """
    text = profile_paths()[name].read_text(encoding="utf-8")
    return ClusterSpec.model_validate(yaml.load(text, Loader=yaml.BaseLoader))
