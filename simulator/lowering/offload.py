"""Transfers between device and host, and the update on the host (E3.14): tasks on streams of their own.

| stream | carries | begins when |
| --- | --- | --- |
| `d2h` | a layer's kept activations, reduced gradients | they are complete |
| `h2d` | weights of the layer that is gathered next, activations of the one that runs back next, updated weights | |
| `host` | the pieces of the update | norm and gradients are known, and the piece's states are there |
| `nvme read`, `nvme write` | states of the next piece, of the last one | a window is free, the piece is updated |

A copy to or from NVMe loads link, host memory and drives at the same time: the slowest sets the pace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from simulator.cost.offload import UPDATE_TILES, WINDOWS, HostResource, OffloadedStates
from simulator.cost.pricing import LayerCost
from simulator.engine import Demand
from simulator.lowering.builder import Category, RoutineBuilder
from simulator.parallel.training import Offload

DOWN_STREAM, UP_STREAM, HOST_STREAM = "d2h", "h2d", "host"
READ_STREAM, WRITE_STREAM = "nvme read", "nvme write"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLowering:
    """What all transfers to and from the host share."""

    offload: Offload
    """What lies outside the device."""
    slots: Mapping[HostResource, int]
    """Number of each host resource among those of a class; of those that the cluster's profile knows."""
    update_efficiency: float
    """Share of the bandwidth of host memory that the update reaches."""

    def down(self, count: int, place: str, build: RoutineBuilder, *, waits: tuple[int, ...], records: int) -> None:
        """Copies bytes from the device to a place outside it."""
        self._copy("copy to host", HostResource.LINK_DOWN, count, place, build, DOWN_STREAM, waits, records)

    def up(self, count: int, place: str, build: RoutineBuilder, *, waits: tuple[int, ...], records: int) -> None:
        """Copies bytes from a place outside the device to it."""
        self._copy("copy from host", HostResource.LINK_UP, count, place, build, UP_STREAM, waits, records)

    def _copy(
        self,
        name: str,
        link: HostResource,
        count: int,
        place: str,
        build: RoutineBuilder,
        stream: str,
        waits: tuple[int, ...],
        records: int,
    ) -> None:
        loaded = [link, HostResource.MEMORY, *([HostResource.NVME] if place == "nvme" else [])]
        build.aside(
            name,
            stream=stream,
            category=Category.OFFLOAD,
            demands=self.demands(dict.fromkeys(loaded, count)),
            waits=waits,
            records=records,
        )

    def demands(self, amounts: Mapping[HostResource, int]) -> tuple[Demand, ...]:
        """Returns the loads of a task on the resources that are known."""
        return tuple(
            Demand(resource=self.slots[resource], bytes=count)
            for resource, count in amounts.items()
            if count and resource in self.slots
        )


def lower_update_on_host(outside: OffloadedStates, build: RoutineBuilder, host: HostLowering, *, first: int) -> None:
    """Adds the update of a rank's shard on the host; compute waits until the updated weights are there.

    Args:
        outside: states outside the device, of all stages of the rank.
        build: the end of a step; all gradients are on their way down, their norm is known.
        host: how the host is reached.
        first: event after which all gradients are on the host.
    """
    event = build.registry.event
    norm = event("norm of the gradients is known")
    build.record(norm)
    # Compute waits for each step in turn, so that what it waits for is what is running.
    steps, last_steps = [first], []
    reads = _pieces(int(outside.nvme_read_bytes))
    writes = _pieces(int(outside.nvme_written_bytes))
    traffic = _pieces(ceil(outside.update_bytes / host.update_efficiency))
    weights = _pieces(int(outside.weights_up_bytes))
    for tile in range(UPDATE_TILES):
        waits = [norm, first] if tile == 0 else []
        if reads[tile]:
            ready = event(f"states of piece {tile} are read")
            free = (event(f"piece {tile - WINDOWS} is written"),) if tile >= WINDOWS else ()
            _drives(reads[tile], "read states", READ_STREAM, build, host, waits=free, records=ready)
            waits.append(ready)
        updated = event(f"piece {tile} is updated")
        build.aside(
            "update on host",
            stream=HOST_STREAM,
            category=Category.OFFLOAD,
            demands=host.demands({HostResource.MEMORY: traffic[tile]}),
            waits=tuple(waits),
            records=updated,
        )
        steps += [*waits[-1:], updated]
        if writes[tile]:
            last_steps.append(event(f"piece {tile} is written"))
            _drives(writes[tile], "write states", WRITE_STREAM, build, host, waits=(updated,), records=last_steps[-1])
        if weights[tile]:
            last_steps.append(event(f"weights of piece {tile} are on the device"))
            host.up(weights[tile], "cpu", build, waits=(updated,), records=last_steps[-1])
    for step in (*steps, *last_steps):
        build.wait(step)
        build.cut()


def _drives(
    count: int,
    name: str,
    stream: str,
    build: RoutineBuilder,
    host: HostLowering,
    *,
    waits: tuple[int, ...],
    records: int,
) -> None:
    demands = host.demands({HostResource.NVME: count, HostResource.MEMORY: count})
    build.aside(name, stream=stream, category=Category.OFFLOAD, demands=demands, waits=waits, records=records)


def _pieces(count: int) -> list[int]:
    """Cuts bytes into the pieces of an update, the larger ones last."""
    return [(tile + 1) * count // UPDATE_TILES - tile * count // UPDATE_TILES for tile in range(UPDATE_TILES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationCopies:
    """Kept activations of a stage that leave the device after forward and come back for backward."""

    sizes: Mapping[int, int]
    """Bytes by position of the layer; empty: none leave."""
    place: str
    """Name of the stage on its rank, for events."""
    build: RoutineBuilder
    host: HostLowering

    def after_forward(self, position: int) -> None:
        """Sends a layer's activations down; compute waits until those of the layer before have left."""
        if self.sizes.get(position):
            done = self._event(f"layer {position} has run forward")
            self.build.record(done)
            down = self._event(f"activations of layer {position} have left")
            self.host.down(self.sizes[position], self.host.offload.activations, self.build, waits=(done,), records=down)
        if self.sizes.get(position - 1):
            self.build.wait(self._event(f"activations of layer {position - 1} have left"))

    def before_backward(self, position: int) -> None:
        """Asks for the activations of the layer that runs back next; compute waits for this layer's."""
        if self.sizes.get(position - 1):
            begins = self._event(f"layer {position} runs back")
            self.build.record(begins)
            waits = (begins, self._event(f"activations of layer {position - 1} have left"))
            up = self._event(f"activations of layer {position - 1} are back")
            self.host.up(self.sizes[position - 1], self.host.offload.activations, self.build, waits=waits, records=up)
        if self.sizes.get(position):
            self.build.wait(self._event(f"activations of layer {position} are back"))

    def _event(self, what: str) -> int:
        return self.build.registry.event(f"{self.place} {what}")


def send_gradients_down(
    layers: Sequence[LayerCost], build: RoutineBuilder, host: HostLowering, *, waits: tuple[int, ...], name: str
) -> None:
    """Copies the reduced gradients of some layers to the host."""
    if total := sum(int(layer.share.gradient_shard_bytes) for layer in layers):
        host.down(total, "cpu", build, waits=waits, records=build.registry.event(f"{name} are on the host"))
