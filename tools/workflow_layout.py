"""ComfyUI's workflow files from a short description: columns of nodes by step, no wire under a node.

A column is a step of the work, framed by a group. A wire to the next column runs between the two. One that
skips columns is led above them through points that the front end calls reroutes, one lane for each output;
one to a lower node of its own column is led between the two nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
BYPASSED = 4  # a node's mode
NOTE = "MarkdownNote"  # a node of the front end alone

# Pixels of the graph, by the front end's own measures at the time of writing
LEFT, TOP = 60, 80
COLUMN_GAP = 80  # room for the wires' curves
ROW_GAP = 90  # 30 for the title, and the 60 by which Nodes 2.0 draws nodes taller
TITLE, SLOT, WIDGET, TEXT_LINE = 30, 20, 24, 20
GROUP_TITLE, GROUP_MARGIN, LANE = 50, 20, 18
FAR, RISER = 200, 5  # a wire that rises or falls more runs beside the nodes, this far from another
DETOUR, DETOUR_GAP = 64, 30  # of a wire to a lower node of its column, above that node; more room for it
WINDOW = (80, 110, 1800, 930)  # left, top, width and height of what a window of 1920x1080 has free
BADGE = 40  # what the front end writes above a node, and Nodes 2.0 moves


@dataclass(frozen=True)
class Out:
    """An output of another node: that node's key, and the output's name."""

    node: str
    name: str


@dataclass(frozen=True)
class Node:
    """A node: `inputs` holds links (`Out`) and values of widgets; what is not given has its default."""

    type: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""  # empty: the node's own
    picture: int = 0  # pixels kept free below the widgets for what a run shows there
    bypassed: bool = False


@dataclass(frozen=True)
class Step:
    """A column: its heading, its nodes from top to bottom by keys that links name, its note in Markdown."""

    title: str
    nodes: Mapping[str, Node]
    note: str = ""
    width: int = 320


@dataclass(frozen=True)
class _Placed:
    """A node with its place; the column counts from 0."""

    number: int
    column: int
    node: Node
    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    def slot_y(self, slot: int) -> int:
        """About where a slot is; those of widgets lie lower, in the newer renderer all."""
        return self.y + SLOT * slot + 2 * SLOT // 3


_Output = tuple[int, int]  # number of a node, number of a slot
_Point = tuple[int, int]


@dataclass(frozen=True)
class _Link:
    number: int
    source: _Placed
    source_slot: int
    target: _Placed
    target_slot: int
    type: str

    @property
    def output(self) -> _Output:
        return self.source.number, self.source_slot


def workflow(steps: Sequence[Step], information: Json) -> Json:
    """The workflow in UI format; `information` is a server's /object_info, which names inputs and outputs.

    Raises ValueError where a node, an input or an output does not exist, or a link leads neither to a later
    column nor down its own.
    """
    placed = _placed(steps, information)
    links = list(_links(placed, information))
    reroutes, parents = _reroutes(links)
    highest = min([TOP - TITLE - BADGE + LANE, *(reroute["pos"][1] for reroute in reroutes)])
    nodes = [_node(entry, links, information) for entry in placed.values()]
    groups = [_group(i, step, placed, highest) for i, step in enumerate(steps)]
    return {
        "id": "00000000-0000-0000-0000-000000000000",
        "revision": 0,
        "last_node_id": len(placed),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": [
            [x.number, x.source.number, x.source_slot, x.target.number, x.target_slot, x.type] for x in links
        ],
        "groups": groups,
        "config": {},
        "extra": {
            "ds": _view([group["bounding"] for group in groups]),
            "linkExtensions": [{"id": link, "parentId": parent} for link, parent in parents.items()],
            "reroutes": reroutes,
        },
        "version": 0.4,
    }


def _view(frames: Sequence[Sequence[float]]) -> Json:
    """Where the graph lies in the window when it is opened: all of it, below the menu and beside the bar."""
    left, top = (min(frame[i] for frame in frames) for i in (0, 1))
    right, bottom = (max(frame[i] + frame[i + 2] for frame in frames) for i in (0, 1))
    x, y, width, height = WINDOW
    scale = round(min(1, width / (right - left), height / (bottom - top)), 2)
    return {"scale": scale, "offset": [round(x / scale - left), round(y / scale - top)]}


def _placed(steps: Sequence[Step], information: Json) -> dict[str, _Placed]:
    """Every node by its key; a column's note stands at its top."""
    placed: dict[str, _Placed] = {}
    x = LEFT
    for column, step in enumerate(steps):
        y = TOP
        notes = (
            {f"note of {step.title}": Node(NOTE, {"": step.note}, "Change this first")} if step.note else {}
        )
        for key, node in (notes | dict(step.nodes)).items():
            height = _height(node, step.width, information)
            above = sum(out.node in step.nodes for out in node.inputs.values() if isinstance(out, Out))
            y += LANE * above + (DETOUR_GAP if above else 0)
            if key in placed:
                raise ValueError(f"Two nodes have the key {key!r}: give one another.")
            placed[key] = _Placed(len(placed) + 1, column, node, x, y, step.width, height)
            y += height + ROW_GAP
        x += step.width + COLUMN_GAP
    return placed


def _height(node: Node, width: int, information: Json) -> int:
    """As the front end computes it: rows of slots, then rows of widgets."""
    if node.type == NOTE:
        lines = sum(1 + len(line) // (width // 7) for line in node.inputs[""].splitlines())
        return 40 + TEXT_LINE * lines
    slots = max(len(list(_sockets(node, information))), len(_described(node, information)["output"]))
    widgets = [options for name, kind, options in _inputs(node, information) if _is_widget(kind, options)]
    rows = sum(1 + bool(x.get("control_after_generate")) + bool(x.get("image_upload")) for x in widgets)
    texts = sum(3 * TEXT_LINE for options in widgets if options.get("multiline"))
    return SLOT * slots + 6 + (WIDGET * rows + 8 if rows else 0) + texts + node.picture


def _described(node: Node, information: Json) -> Json:
    if node.type not in information:
        raise ValueError(f"There is no node {node.type}: this ComfyUI lacks it.")
    return information[node.type]


def _inputs(node: Node, information: Json) -> Iterator[tuple[str, Any, Json]]:
    """Name, type and options of each input, in the order of the node's widgets."""
    for group in ("required", "optional"):
        for name, (kind, *options) in _described(node, information)["input"].get(group, {}).items():
            yield name, kind, options[0] if options else {}


def _is_widget(kind: Any, options: Json) -> bool:
    return not options.get("forceInput") and (isinstance(kind, list) or kind in WIDGETS)


def _sockets(node: Node, information: Json) -> Iterator[str]:
    return (name for name, kind, options in _inputs(node, information) if not _is_widget(kind, options))


def _slots(node: Node, information: Json) -> list[tuple[str, str, bool]]:
    """Name, type and whether a widget, of each input slot: sockets first, as the front end orders them."""
    slots = [
        (name, "COMBO" if isinstance(kind, list) else kind, _is_widget(kind, options))
        for name, kind, options in _inputs(node, information)
    ]
    return sorted(slots, key=lambda slot: slot[2])


def _links(placed: Mapping[str, _Placed], information: Json) -> Iterator[_Link]:
    number = 0
    for key, target in placed.items():
        if target.node.type == NOTE:
            continue
        slots = _slots(target.node, information)
        names = [name for name, _, _ in slots]
        unknown = set(target.node.inputs) - set(names)
        if unknown:
            raise ValueError(f"Node {key!r} ({target.node.type}) has no {sorted(unknown)}: it has {names}.")
        for slot, (name, _, _) in enumerate(slots):
            out = target.node.inputs.get(name)
            if isinstance(out, Out):
                number += 1
                yield _link(number, out, placed, target, slot, information)


def _link(
    number: int, out: Out, placed: Mapping[str, _Placed], target: _Placed, slot: int, information: Json
) -> _Link:
    if out.node not in placed:
        raise ValueError(f"There is no node {out.node!r}: there are {sorted(placed)}.")
    source = placed[out.node]
    described = _described(source.node, information)
    if out.name not in described["output_name"]:
        raise ValueError(f"Node {out.node!r} has no output {out.name!r}: it has {described['output_name']}.")
    if (source.column, source.number) >= (target.column, target.number):
        raise ValueError(
            f"{out.node!r} has to stand in a column before {target.node.type}'s, or above it: wires run "
            "right and down."
        )
    source_slot = described["output_name"].index(out.name)
    return _Link(number, source, source_slot, target, slot, described["output"][source_slot])


def _reroutes(links: Sequence[_Link]) -> tuple[list[Json], dict[int, int]]:
    """Reroutes, and by a link's number the last of those that it runs through. Links of one output share the
    first part of their way.
    """
    reroutes: dict[tuple[_Output, tuple[_Point, ...]], Json] = {}
    parents: dict[int, int] = {}
    for link, points in _ways(links):
        way: tuple[_Point, ...] = ()
        for point in points:
            before, way = parents.get(link.number), (*way, point)
            new = {"id": len(reroutes) + 1, "pos": list(point), "linkIds": []}
            here = reroutes.setdefault((link.output, way), new | ({"parentId": before} if before else {}))
            here["linkIds"].append(link.number)
            parents[link.number] = here["id"]
    return list(reroutes.values()), parents


def _ways(links: Sequence[_Link]) -> Iterator[tuple[_Link, list[_Point]]]:
    """The points that links are led through, of those that cannot run straight."""
    stops: dict[_Output, set[int]] = {}  # columns that a lane above the nodes leads to
    risers: dict[int, list[_Output]] = {}  # by column: outputs whose wires rise or fall beside it
    below: dict[int, int] = {}  # by lower node: links led down to it so far
    for link in links:
        if link.target.column > link.source.column + 1:
            stops.setdefault(link.output, set()).add(link.target.column)
    for link in links:
        source, target = link.source, link.target
        start, end = source.slot_y(link.source_slot), target.slot_y(link.target_slot)
        if source.column == target.column:
            below[target.number] = number = below.get(target.number, 0) + 1
            y, aside = target.y - DETOUR - LANE * number + LANE // 2, COLUMN_GAP // 4 + LANE * number // 2
            yield link, [(source.right + aside, y), (target.x - aside, y)]
            continue
        lanes = list(stops)
        lane = TOP - TITLE - BADGE - LANE * lanes.index(link.output) if link.output in stops else None
        skips = target.column > source.column + 1
        level = lane if skips and lane is not None else end
        points: list[_Point] = []
        if abs(level - start) > FAR:
            outputs = risers.setdefault(source.column, [])
            if link.output not in outputs:
                outputs.append(link.output)
            x = source.right + COLUMN_GAP // 4 + RISER * outputs.index(link.output)
            points = [(x, start), (x, level)]
        if skips:
            points = points or [(source.right + COLUMN_GAP // 2, level)]
            left = {x.target.column: x.target.x for x in links if x.output == link.output}
            columns = sorted(column for column in stops[link.output] if column <= target.column)
            points += [(left[column] - COLUMN_GAP // 2, level) for column in columns]
        if points:
            yield link, points


def _node(entry: _Placed, links: Sequence[_Link], information: Json) -> Json:
    node = entry.node
    common: Json = {
        "id": entry.number,
        "type": node.type,
        "pos": [entry.x, entry.y],
        "size": [entry.width, entry.height],
        "flags": {},
        "order": entry.number - 1,
        "mode": BYPASSED if node.bypassed else 0,
    }
    if node.title:
        common["title"] = node.title
    if node.type == NOTE:
        return common | {"inputs": [], "outputs": [], "properties": {}, "widgets_values": [node.inputs[""]]}
    described = _described(node, information)
    arriving = {link.target_slot: link.number for link in links if link.target is entry}
    inputs = [
        {"name": name, "type": kind}
        | ({"widget": {"name": name}} if widget else {})
        | {"link": arriving.get(slot)}
        for slot, (name, kind, widget) in enumerate(_slots(node, information))
    ]
    outputs = [
        {
            "name": name,
            "type": kind,
            "links": [x.number for x in links if x.source is entry and x.source_slot == slot],
        }
        for slot, (name, kind) in enumerate(zip(described["output_name"], described["output"], strict=True))
    ]
    return common | {
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.type},
        "widgets_values": list(_values(node, information)),
    }


def _values(node: Node, information: Json) -> Iterator[Any]:
    """Values of a node's widgets, in their order, with those that the front end adds."""
    for name, kind, options in _inputs(node, information):
        if not _is_widget(kind, options):
            continue
        value = node.inputs.get(name)
        yield _default(kind, options) if value is None or isinstance(value, Out) else value
        if options.get("control_after_generate"):
            yield "fixed"
        if options.get("image_upload"):
            yield "image"


def _default(kind: Any, options: Json) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options") or [None]
    none = {"STRING": "", "INT": 0, "FLOAT": 0.0, "BOOLEAN": False}
    return options.get("default", choices[0] if kind == "COMBO" or isinstance(kind, list) else none[kind])


def _group(number: int, step: Step, placed: Mapping[str, _Placed], highest: int) -> Json:
    """The frame of a column; its title stands above the highest lane."""
    own = [entry for entry in placed.values() if entry.column == number]
    top, bottom = highest - GROUP_TITLE, max(entry.y + entry.height for entry in own) + 4 * GROUP_MARGIN
    left, width = own[0].x - GROUP_MARGIN, step.width + 2 * GROUP_MARGIN
    return {
        "id": number + 1,
        "title": step.title,
        "bounding": [left, top, width, bottom - top],
        "color": "#3f789e",
        "font_size": 24,
        "flags": {},
    }
