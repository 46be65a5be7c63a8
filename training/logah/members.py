"""Architectures to learn from: they are drawn from spaces and stored with their graphs in a JSON file."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from model_zoo.architectures import IMAGE_SIZE, make_meta
from model_zoo.spaces import (
    HELD_OUT,
    CnnMember,
    GptMember,
    Member,
    MlpMember,
    RegisteredMember,
    ResNetMember,
    ViTMember,
    draw_member,
)
from weightgen.errors import BadOption, CorruptFile, NotFound
from weightgen.files.storage import read_json, write_json
from weightgen.graph.arch_graph import ArchGraph, Node, OwnedTensor, build_graph
from weightgen.spec import StateSpec

_MEMBERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (CnnMember, MlpMember, ResNetMember, ViTMember, GptMember, RegisteredMember)
}


@dataclass(frozen=True, slots=True)
class StoredMember:
    """An architecture to learn from, with its graph."""

    space: str
    member: Member
    graph: ArchGraph


def draw_members(
    spaces: Mapping[str, int],
    *,
    classes: tuple[int, int],
    channels: tuple[int, ...] = (1,),
    max_parameters: int,
    seed: int,
) -> list[StoredMember]:
    """Different architectures, as many from each space as `spaces` says; held-out ones are never among them.

    A held-out architecture is refused at every number of classes and channels. The number of classes of a member is
    from the range `classes`, with its logarithm evenly spread; its number of channels is one of `channels`.
    """
    rng = torch.Generator().manual_seed(seed)

    @cache
    def refused(num_classes: int, in_channels: int) -> set[str]:
        held = (_fitted(m, num_classes=num_classes, in_channels=in_channels) for m in HELD_OUT.values())
        return {graph_of(member).digest for member in held}

    seen: set[Member] = set()
    drawn: list[StoredMember] = []
    for space, count in spaces.items():
        misses, wanted = 0, len(drawn) + count
        while len(drawn) < wanted:
            share = float(torch.rand(1, generator=rng))
            num_classes = round(classes[0] * (classes[1] / classes[0]) ** share)
            in_channels = channels[int(torch.randint(len(channels), (1,), generator=rng))]
            member = _fitted(draw_member(space, rng), num_classes=num_classes, in_channels=in_channels)
            graph = graph_of(member)
            size = sum(t.numel for t in graph.spec.tensors if t.tied_to is None)
            if member in seen or graph.digest in refused(num_classes, in_channels) or size > max_parameters:
                misses += 1
                if misses > 100 + 20 * count:
                    raise BadOption(f"space {space!r} has fewer than {count} different architectures of this size")
                continue
            seen.add(member)
            drawn.append(StoredMember(space, member, graph))
    return drawn


def save_members(path: Path, members: Iterable[StoredMember], config: Mapping[str, Any]) -> None:
    """Write architectures and their graphs to a JSON file, with the settings they were drawn for."""
    rows = [
        {
            "space": m.space,
            "member": {"kind": type(m.member).__name__, **asdict(m.member)},  # pyright: ignore[reportArgumentType]
            "spec": m.graph.spec.to_json(),
            "nodes": [[n.op, [[t.name, t.role, t.is_transposed, t.is_buffer] for t in n.tensors], n.reads]
                      for n in m.graph.nodes],
            "edges": m.graph.edges.tolist(),
            "digest": m.graph.digest,
        }
        for m in members
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": config, "members": rows})


def load_members(path: Path) -> tuple[dict[str, Any], list[StoredMember]]:
    """Settings and architectures that `save_members` wrote; CorruptFile if a graph is not the one that was stored."""
    if not path.exists():
        raise NotFound(f"{path}: not there; run `graphs` before `train`")
    content = read_json(path)
    members = []
    for row in content["members"]:
        about = {k: tuple(v) if isinstance(v, list) else v for k, v in row["member"].items()}
        kind = _MEMBERS[row["member"]["kind"]]
        nodes = tuple(
            Node(op, tuple(OwnedTensor(*t[:3], is_buffer=t[3]) for t in tensors), tuple(reads))
            for op, tensors, reads in row["nodes"]
        )
        edges = torch.tensor(row["edges"], dtype=torch.long).reshape(-1, 2)
        graph = ArchGraph(StateSpec.from_json(row["spec"]), nodes, edges)
        if graph.digest != row["digest"]:
            raise CorruptFile(f"{path}: the graph of {row['member']} is not the one that was stored")
        members.append(StoredMember(row["space"], kind(**{k: v for k, v in about.items() if k != "kind"}), graph))
    return content["config"], members


def graph_of(member: Member) -> ArchGraph:
    """The graph of a member, traced on an example input."""
    if isinstance(member, GptMember):
        return build_graph(make_meta(member.build), torch.zeros(1, 8, dtype=torch.long))
    return build_graph(make_meta(member.build), torch.zeros(1, channels_of(member), IMAGE_SIZE, IMAGE_SIZE))


def channels_of(member: Any) -> int:
    """Channels of the images that a classifier takes."""
    return member.in_features // IMAGE_SIZE**2 if isinstance(member, MlpMember) else member.in_channels


def _fitted(member: Any, *, num_classes: int, in_channels: int) -> Member:
    """The member with this number of classes and channels, where it has such a setting."""
    wanted = {"num_classes": num_classes, "in_channels": in_channels, "in_features": in_channels * IMAGE_SIZE**2}
    return replace(member, **{f.name: wanted[f.name] for f in fields(member) if f.name in wanted})
