"""The form of a fault in the network: a NIC at half rate, a lost rail, a failed link, a slow node."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_SLOWDOWN = 1000.0
"""What is slower than that has failed."""
_Number = Annotated[int, Field(ge=0)]
_Numbers = Annotated[tuple[_Number, ...], Field(min_length=1)]
_PLACES = ("device", "devices", "node", "nodes", "rail", "link")


class Degraded(BaseModel):
    """Devices or links that are slower than the rest of the machine, or lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: _Number | None = Field(None, description="One device.")
    devices: _Numbers | None = Field(None, description="Several devices.")
    node: _Number | None = Field(None, description="All devices of one host; hosts are counted along the devices.")
    nodes: _Numbers | None = Field(None, description="All devices of several hosts.")
    rail: _Number | None = Field(None, description="All devices of one rail of the tier.")
    block: _Number | None = Field(
        None, description="With rail: only under this block of the tier's first level (one leaf switch)."
    )
    link: tuple[_Number, _Number] | None = Field(
        None, description="The link between two neighbouring devices of a torus, or two devices of a mesh."
    )
    tier: str = Field("", max_length=100, description="Name of the tier whose ports or links are meant.")
    bandwidth: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="Share of the bandwidth that is left, both directions; 0: lost."
    )
    slowdown: Annotated[float, Field(ge=1.0, le=MAX_SLOWDOWN)] | None = Field(
        None, description="In place of tier and bandwidth: factor on the time of everything that the devices compute."
    )

    @model_validator(mode="after")
    def _says_what_and_where(self) -> Degraded:
        given = [name for name in _PLACES if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} stand together" if given else "names no place"
            raise ValueError(f"{said}; give exactly one of {', '.join(_PLACES)}")
        if self.block is not None and self.rail is None:
            raise ValueError("block stands without rail; it says under which leaf the rail is degraded")
        if (self.slowdown is None) == (self.bandwidth is None):
            raise ValueError("give bandwidth, the share of it that is left, or slowdown, a factor on compute times")
        if self.slowdown is not None and (self.tier or given[0] in ("rail", "link")):
            raise ValueError("slowdown is of devices that compute; leave out tier, rail and link")
        if self.bandwidth is not None and not self.tier:
            raise ValueError("bandwidth is given without tier; name the tier whose ports or links are degraded")
        return self

    def chosen_devices(self, node_size: int) -> tuple[int, ...]:
        """Returns the devices that `device`, `devices`, `node` or `nodes` name; nothing for rails and links."""
        single = () if self.device is None else (self.device,)
        nodes = (*((self.node,) if self.node is not None else ()), *(self.nodes or ()))
        of_nodes = (node * node_size + at for node in nodes for at in range(node_size))
        return tuple(dict.fromkeys((*single, *(self.devices or ()), *of_nodes)))
