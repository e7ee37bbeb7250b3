"""Jobs for a ComfyUI server: a workflow with changes, queued by its API, followed over its WebSocket.

A lost connection is taken up again; a job's end is read from the server's history, so that none is missed.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ..method.progress import OnStage

if TYPE_CHECKING:
    from aiohttp import ClientSession

Prompt = dict[str, dict[str, Any]]  # ComfyUI's API format: node id -> class_type, inputs
OnProgress = Callable[[str, int, int], None]  # (node, done, total)
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
MUTED, BYPASSED = 2, 4  # modes of a node in a UI-format workflow
EXPORT = "export it in ComfyUI with Workflow > Export (API) and queue that file"
PATIENCE = 15.0  # seconds without a message after which the history is asked
TRIES = 20  # connections in a row that may fail


class JobFailed(ValueError):
    """Raised when a server refuses a job or a node of it fails, with the server's own words; `node` is that
    node's type.
    """

    def __init__(self, words: str, node: str = "") -> None:
        super().__init__(words)
        self.node = node


@dataclass
class Job:
    """A finished job: its id on the server, and the files it saved, as the server names them."""

    prompt_id: str
    files: list[dict[str, str]] = field(default_factory=list)
    downloaded: list[Path] = field(default_factory=list)

    @property
    def saved(self) -> list[str]:
        """Paths here, where files were downloaded, else below the server's output folder."""
        names = [f"{file.get('subfolder', '')}/{file['filename']}".lstrip("/") for file in self.files]
        return [str(path) for path in self.downloaded] or names


def read_workflow(path: Path) -> dict[str, Any]:
    """A workflow file of either format. Raises ValueError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"Workflow {path} does not exist: check the path.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"Workflow {path} cannot be read ({error}): give a file saved by ComfyUI.") from None
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        return content
    if (
        isinstance(content, dict)
        and content
        and all(isinstance(node, dict) and "class_type" in node for node in content.values())
    ):
        return content
    raise ValueError(f"{path} is no ComfyUI workflow: give a file saved by ComfyUI.")


def as_prompt(workflow: dict[str, Any], information: dict[str, Any]) -> Prompt:
    """API format from either format; `information` is the server's /object_info, which names the widgets.

    Raises ValueError for a UI-format workflow with nodes that only the browser can resolve.
    """
    if "nodes" not in workflow:
        return copy.deepcopy(workflow)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow.get("links", [])}
    prompt: Prompt = {}
    for node in nodes.values():
        node_type = node["type"]
        if node_type in ("Note", "MarkdownNote") or node.get("mode") == BYPASSED:
            continue
        if node.get("mode") == MUTED or node_type not in information:
            raise ValueError(f"Node {node['id']} ({node_type}) cannot be converted here: {EXPORT}.")
        inputs = _widget_values(node, information[node_type])
        for slot in node.get("inputs", []):
            source = _source(slot.get("link"), nodes, links)
            if source:
                inputs[slot["name"]] = [str(source[0]), source[1]]
        title = node.get("title") or information[node_type].get("display_name") or node_type
        prompt[str(node["id"])] = {"class_type": node_type, "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _source(
    link: int | None, nodes: dict[int, dict[str, Any]], links: dict[int, tuple[int, int]]
) -> tuple[int, int] | None:
    """Node and output that a link comes from; a bypassed node passes on what it is given of the same type."""
    if link is None:
        return None
    node_id, slot = links[link]
    node = nodes[node_id]
    if node.get("mode") != BYPASSED:
        return node_id, slot
    passed_on = node["outputs"][slot]["type"]
    inputs = (entry.get("link") for entry in node["inputs"] if entry["type"] == passed_on)
    return _source(next(inputs, None), nodes, links)


def _widget_values(node: dict[str, Any], information: dict[str, Any]) -> dict[str, Any]:
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    remaining, inputs = iter(values), {}
    for name, input_type, settings in _declared(information):
        if settings.get("forceInput") or not (isinstance(input_type, list) or input_type in WIDGETS):
            continue
        value = next(remaining, None)
        if value is not None:
            inputs[name] = value
        if settings.get("control_after_generate"):
            next(remaining, None)  # the browser's own "fixed" or "randomize"
    return inputs


def _declared(information: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and settings of a node's inputs, in the order of its widgets."""
    for group in ("required", "optional"):
        for name, (input_type, *options) in information["input"].get(group, {}).items():
            yield name, input_type, options[0] if options else {}


def changed(prompt: Prompt, assignments: list[str]) -> Prompt:
    """`prompt` with `node.input=value` applied; a node is named by id, title or type, a value may be JSON.

    Raises ValueError, naming what there is, when node or input do not exist or the name fits several.
    """
    prompt = copy.deepcopy(prompt)
    for assignment in assignments:
        parts = re.fullmatch(r"(.+)\.([^.=]+)=(.*)", assignment, re.DOTALL)
        if not parts:
            raise ValueError(f"--set {assignment!r} is not of the form node.input=value.")
        name, key, text = parts.groups()
        node = prompt[_node_id(prompt, name)]
        if key not in node["inputs"]:
            known = ", ".join(sorted(node["inputs"])) or "none"
            raise ValueError(f"Node {name!r} has no input {key!r}: it has {known}.")
        try:
            node["inputs"][key] = json.loads(text)
        except ValueError:
            node["inputs"][key] = text
    return prompt


def _node_id(prompt: Prompt, name: str) -> str:
    if name in prompt:
        return name
    fitting = [
        node_id
        for node_id, node in prompt.items()
        if name in (node["class_type"], node.get("_meta", {}).get("title"))
    ]
    if len(fitting) == 1:
        return fitting[0]
    known = ", ".join(f"{node_id} ({node['class_type']})" for node_id, node in prompt.items())
    number = "several nodes" if fitting else "no node"
    raise ValueError(f"There is {number} {name!r}: name one by its id of {known}.")


def reseeded(prompt: Prompt, information: dict[str, Any], number: int) -> Prompt:
    """`prompt` with `number` added to every seed that the browser, too, would change from job to job.

    So each job gives something new, while seeds of trainings stay: the server need not train again.
    """
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        inputs = node["inputs"]
        for name, _, settings in _declared(information.get(node["class_type"], {"input": {}})):
            if settings.get("control_after_generate") and isinstance(inputs.get(name), int):
                inputs[name] += number
    return prompt


class ComfyUIServer:
    """A connection to one server. Use `connected`."""

    def __init__(self, url: str, session: ClientSession) -> None:
        self.url, self.session, self.client_id = url.rstrip("/"), session, uuid.uuid4().hex

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[ComfyUIServer]:
        """Raises ValueError where no ComfyUI answers at `url`."""
        import aiohttp

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            server = cls(url, session)
            try:
                await server.get("/system_stats")
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                raise ValueError(
                    f"No ComfyUI answers at {url} ({type(error).__name__}): start it, or give its --server."
                ) from None
            yield server

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)

    async def information(self) -> dict[str, Any]:
        """/object_info: every node's inputs and outputs."""
        return await self.get("/object_info")

    async def run(self, prompt: Prompt, on_progress: OnProgress = lambda *_: None) -> Job:
        """Queues a prompt and follows it to its end. Raises JobFailed with the server's words."""
        content = {"prompt": prompt, "client_id": self.client_id}
        async with self.session.post(self.url + "/prompt", json=content) as answer:
            reply = await answer.json(content_type=None)
        if answer.status != 200:
            raise JobFailed(_refusal(reply))
        prompt_id = reply["prompt_id"]
        blocked: list[str] = []
        history = await self._followed(prompt_id, prompt, on_progress, blocked)
        for event, message in history["status"]["messages"]:
            if event == "execution_error":
                words = str(message["exception_message"]).strip()
                node = message["node_type"]
                raise JobFailed(f"Node {message['node_id']} ({node}) failed: {words}", node)
            if event == "execution_interrupted":
                raise JobFailed("The job was cancelled on the server.")
        if blocked:
            raise JobFailed(" ".join(blocked))
        return Job(prompt_id, _files(history["outputs"]))

    async def _followed(
        self, prompt_id: str, prompt: Prompt, on_progress: OnProgress, blocked: list[str]
    ) -> dict[str, Any]:
        """The history of a job that has ended; `blocked` takes up why nodes were left out, which it lacks."""
        import aiohttp

        failures = 0
        while True:
            try:
                address = f"{self.url}/ws?clientId={self.client_id}"
                async with self.session.ws_connect(address, heartbeat=PATIENCE) as socket:
                    while not (history := await self.get(f"/history/{prompt_id}")):
                        failures = 0
                        await self._listen(socket, prompt_id, prompt, on_progress, blocked)
                    return history[prompt_id]
            except (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError) as error:
                failures += 1
                if failures > TRIES:
                    raise ValueError(
                        f"The connection to {self.url} was lost ({type(error).__name__}): job {prompt_id} "
                        "may go on there, look at its queue."
                    ) from None
                await asyncio.sleep(min(5.0, 0.25 * failures))

    async def _listen(
        self, socket: Any, prompt_id: str, prompt: Prompt, on_progress: OnProgress, blocked: list[str]
    ) -> None:
        """Passes progress on until the job's end is told or nothing is heard for a while."""
        from aiohttp import WSMsgType

        while True:
            try:
                message = await socket.receive(timeout=PATIENCE)
            except asyncio.TimeoutError:
                return
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                raise ConnectionError
            if message.type is not WSMsgType.TEXT:
                continue  # a preview picture
            told = json.loads(message.data)
            event, content = told.get("type", ""), told.get("data", {})
            if content.get("prompt_id") != prompt_id:
                continue
            if event == "progress":
                on_progress(_title(prompt, content["node"]), int(content["value"]), int(content["max"]))
            elif event == "executing" and content.get("node"):
                on_progress(_title(prompt, content["node"]), 0, 1)
            elif event == "execution_error" and content.get("exception_type") == "ExecutionBlocked":
                words = str(content["exception_message"]).removeprefix("Execution Blocked: ")
                blocked.append(f"Node {content['node_id']} ({content['node_type']}) was left out: {words}")
            elif event in ("execution_success", "execution_error", "execution_interrupted"):
                return

    async def download(self, file: dict[str, str], folder: Path) -> Path:
        """Saves an output file of a job below `folder`; never over another, and never outside it."""
        from ..dataset.photos import write_new

        parameters = {key: file.get(key, "") for key in ("filename", "subfolder", "type")}
        async with self.session.get(self.url + "/view", params=parameters) as answer:
            answer.raise_for_status()
            content = await answer.read()
        path = place_of(file, folder)
        write_new(content, path)
        return path


def place_of(file: dict[str, str], folder: Path) -> Path:
    """Where a file that the server names goes: below `folder`, whatever either system is."""
    inner = PureWindowsPath(file.get("subfolder", ""))  # which tells the parts of any system's path
    parts = [part for part in inner.parts if part not in ("..", inner.anchor)]
    return folder.joinpath(*parts, PureWindowsPath(file["filename"]).name)


def _title(prompt: Prompt, node_id: str) -> str:
    node = prompt.get(node_id, {})
    return str(node.get("_meta", {}).get("title") or node.get("class_type", node_id))


def _files(outputs: dict[str, Any]) -> list[dict[str, str]]:
    """Saved files of all nodes; previews, which the server forgets, are left out."""
    return [
        entry
        for output in outputs.values()
        for entries in output.values()
        if isinstance(entries, list)
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") == "output"
    ]


def _refusal(reply: dict[str, Any]) -> str:
    """A refused prompt's errors in one sentence."""
    errors = [
        f"node {node_id} ({node['class_type']}): {error['message']} ({error['details']})"
        for node_id, node in (reply.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    main = reply.get("error", {})
    words = main.get("message", str(main)) if isinstance(main, dict) else str(main)
    return f"The server refused the job: {'; '.join(errors) or words}"


async def queue_jobs(
    workflow: dict[str, Any],
    url: str,
    count: int,
    assignments: list[str],
    *,
    out: Path | None,
    on_stage: OnStage,
) -> list[Job]:
    """Runs `count` jobs of a workflow one after the other; job i has its seeds raised by i.

    With `out`, what they saved is downloaded into a folder for each job. Raises as `ComfyUIServer.run`.
    """
    jobs = []
    async with ComfyUIServer.connected(url) as server:
        information = await server.information()
        prompt = changed(as_prompt(workflow, information), assignments)
        for number in range(count):

            def report(node: str, done: int, total: int, number: int = number) -> None:
                on_stage(f"job {number + 1} of {count}: {node}", done, total, "")

            job = await server.run(reseeded(prompt, information, number), report)
            if out:
                folder = out / job.prompt_id
                job.downloaded = [await server.download(file, folder) for file in job.files]
            jobs.append(job)
    return jobs
