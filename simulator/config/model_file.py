"""A model as the text of a model file: only what differs from the defaults."""

from __future__ import annotations

from typing import Any

import yaml

from simulator.model.spec import ModelSpec

_WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""

    def represent_list(self, items: Any) -> yaml.SequenceNode:
        """Returns the node of a list."""
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


def model_yaml(spec: ModelSpec) -> str:
    """Returns the text of a model file that reads as this model."""
    given = spec.model_dump(mode="json", exclude_defaults=True)
    if spec.convolution is None:
        given["heads"] = spec.heads  # a transformer must say it
    ordered = {name: given[name] for name in type(spec).model_fields if name in given}
    return yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
