"""From the name or file of a cluster to its spec, or to every problem of the file at once."""

from __future__ import annotations

from pathlib import Path

from simulator.cluster.spec import ClusterSpec
from simulator.config.document import read_document
from simulator.config.form import check_form
from simulator.config.library import Kind, looks_like_path, shown_path
from simulator.config.listing import builtin_file
from simulator.errors import ScenarioError


def read_cluster(name: str) -> ClusterSpec:
    """Returns the cluster of a built-in name or of a file.

    Raises:
        ScenarioError: nothing of this name is built in, or every problem of the file.
    """
    path = cluster_path(name)
    root, doubled = read_document(path, shown=shown_path(path))
    spec, problems = check_form(root, ClusterSpec)
    if spec is None or doubled or problems:
        raise ScenarioError([*doubled, *problems])
    return spec


def cluster_text(name: str) -> str:
    """Returns the file of a cluster as it is."""
    return cluster_path(name).read_text(encoding="utf-8")


def cluster_path(name: str) -> Path:
    """Returns the file of a built-in cluster, or the path that the name is."""
    if looks_like_path(name) and Path(name).is_file():
        return Path(name)
    return builtin_file(Kind.CLUSTERS, name)
