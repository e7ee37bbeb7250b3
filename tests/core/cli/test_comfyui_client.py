"""Jobs for a ComfyUI server: both workflow formats, changes, and a server that drops connections."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from anomalydiffusion_core.cli import comfyui_client as comfyui_jobs
from anomalydiffusion_core.cli.comfyui_client import (
    JobFailed,
    as_prompt,
    changed,
    place_of,
    queue_jobs,
    read_workflow,
    reseeded,
)

PROMPT = {
    "1": {"class_type": "Loader", "inputs": {}},
    "2": {"class_type": "Sampler", "inputs": {"model": ["1", 0], "seed": 5, "cfg": 2.5, "mode": "a"}},
}
INFORMATION = {
    "Loader": {"input": {"required": {}}},
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "cfg": ["FLOAT", {}],
                "mode": [["a", "b"], {}],
            }
        }
    },
}
UI = {
    "nodes": [
        {"id": 1, "type": "Loader", "inputs": [], "widgets_values": []},
        {
            "id": 2,
            "type": "Sampler",
            "inputs": [{"name": "model", "link": 9}, {"name": "cfg", "link": None}],
            "widgets_values": [5, "randomize", 2.5, "a"],
        },
        {"id": 3, "type": "MarkdownNote", "widgets_values": ["hello"]},
    ],
    "links": [[9, 1, 0, 2, 0, "MODEL"]],
}


def without_titles(prompt: dict[str, Any]) -> dict[str, Any]:
    return {key: {k: v for k, v in node.items() if k != "_meta"} for key, node in prompt.items()}


def test_both_formats_give_the_same_prompt() -> None:
    assert as_prompt(PROMPT, INFORMATION) == PROMPT
    assert without_titles(as_prompt(UI, INFORMATION)) == PROMPT


@pytest.mark.parametrize("change", [{"mode": 2}, {"type": "Reroute"}])
def test_what_only_the_browser_resolves_is_refused_with_the_way_out(change: dict[str, Any]) -> None:
    workflow = {**UI, "nodes": [UI["nodes"][0], {**UI["nodes"][1], **change}]}
    with pytest.raises(ValueError, match=r"cannot be converted here: export it in ComfyUI"):
        as_prompt(workflow, INFORMATION)


def test_a_bypassed_node_passes_on_what_it_is_given_of_the_same_type() -> None:
    lora = {
        "id": 5, "type": "Lora", "mode": 4,
        "inputs": [
            {"name": "clip", "type": "CLIP", "link": 3}, {"name": "model", "type": "MODEL", "link": 9},
        ],
        "outputs": [{"type": "MODEL"}, {"type": "CLIP"}],
    }  # fmt: skip
    nodes = [*UI["nodes"][:1], lora, UI["nodes"][1] | {"inputs": [{"name": "model", "link": 8}]}]
    links = [[3, 1, 1, 5, 0, "CLIP"], [9, 1, 0, 5, 1, "MODEL"], [8, 5, 0, 2, 0, "MODEL"]]
    assert without_titles(as_prompt({"nodes": nodes, "links": links}, INFORMATION)) == PROMPT
    unlinked = [*UI["nodes"][:1], {**lora, "inputs": []}, nodes[2]]
    assert "model" not in as_prompt({"nodes": unlinked, "links": links}, INFORMATION)["2"]["inputs"]


def test_inputs_are_changed_by_id_title_or_type() -> None:
    assert changed(PROMPT, ["2.cfg=4", "Sampler.mode=b"])["2"]["inputs"] == {
        "model": ["1", 0], "seed": 5, "cfg": 4, "mode": "b",
    }  # fmt: skip
    titled = as_prompt({**UI, "nodes": [UI["nodes"][0], {**UI["nodes"][1], "title": "My one"}]}, INFORMATION)
    assert changed(titled, ["My one.mode=x=y"])["2"]["inputs"]["mode"] == "x=y"
    assert PROMPT["2"]["inputs"]["cfg"] == 2.5
    for wrong, words in (
        ("2.size=1", "has no input 'size': it has cfg, mode, model, seed"),
        ("9.cfg=1", r"no node '9': name one by its id of 1 \(Loader\), 2 \(Sampler\)"),
        ("cfg", "not of the form node.input=value"),
    ):
        with pytest.raises(ValueError, match=words):
            changed(PROMPT, [wrong])
    twice = {**PROMPT, "3": PROMPT["2"]}
    with pytest.raises(ValueError, match="several nodes 'Sampler'"):
        changed(twice, ["Sampler.cfg=1"])


def test_job_after_job_has_other_seeds() -> None:
    seeds = [reseeded(PROMPT, INFORMATION, i)["2"]["inputs"]["seed"] for i in range(3)]
    assert seeds == [5, 6, 7]
    linked = {"1": {"class_type": "Sampler", "inputs": {"seed": ["2", 0]}}}
    assert reseeded(linked, INFORMATION, 3) == linked


def test_seeds_that_the_browser_would_leave_stay_as_they_are() -> None:
    information = {
        "Training": {"input": {"required": {"seed": ["INT", {"control_after_generate": False}]}}},
        "Sampler": {"input": {"optional": {"noise_seed": ["INT", {"control_after_generate": True}]}}},
    }
    prompt = {
        "1": {"class_type": "Training", "inputs": {"seed": 5}},
        "2": {"class_type": "Sampler", "inputs": {"noise_seed": 5}},
        "3": {"class_type": "Unknown", "inputs": {"seed": 5}},
    }
    values = [list(node["inputs"].values()) for node in reseeded(prompt, information, 2).values()]
    assert values == [[5], [7], [5]]


def test_files_that_are_no_workflow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_workflow(tmp_path / "none.json")
    for number, content in enumerate(("", "[1]", "{}", '{"a": 1}', "\x00")):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=r"cannot be read|is no ComfyUI workflow"):
            read_workflow(path)
    path = tmp_path / "good.json"
    path.write_text(json.dumps(PROMPT))
    assert read_workflow(path) == PROMPT


class FakeComfyUI:
    """Ends each job after some WebSocket connections, each of which it drops after one message."""

    def __init__(self, end: list[tuple[str, dict[str, Any]]], connections: int = 3) -> None:
        self.end, self.needed, self.connections = end, connections, 0
        self.queued: list[dict[str, Any]] = []
        self.broken = False

    async def prompt(self, request: web.Request) -> web.Response:
        content = await request.json()
        if content["prompt"]["2"]["inputs"]["cfg"] == "bad":
            error = {"message": "Value not valid", "details": "cfg, bad"}
            node = {"class_type": "Sampler", "errors": [error]}
            return web.json_response({"error": {"message": "x"}, "node_errors": {"2": node}}, status=400)
        self.queued.append(content["prompt"])
        self.connections = 0
        return web.json_response({"prompt_id": f"job{len(self.queued)}"})

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connections += 1
        job = f"job{len(self.queued)}"
        data = {"prompt_id": job, "node": "2", "value": self.connections, "max": 3}
        await socket.send_json({"type": "progress", "data": data})
        await socket.close()
        return socket

    async def history(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        if self.broken:
            raise web.HTTPInternalServerError
        if self.connections < self.needed:
            return web.json_response({})
        files = [
            {"filename": "a.png", "subfolder": "made", "type": "output"},
            {"filename": "p.png", "subfolder": "", "type": "temp"},
        ]
        return web.json_response(
            {job: {"status": {"messages": self.end}, "outputs": {"2": {"images": files, "text": ["x"]}}}}
        )

    async def view(self, request: web.Request) -> web.Response:
        return web.Response(body=f"{request.query['subfolder']}/{request.query['filename']}".encode())

    async def information(self, request: web.Request) -> web.Response:
        return web.json_response(INFORMATION)

    async def run(self, **arguments: Any) -> Any:
        application = web.Application()
        application.add_routes(
            [
                web.get("/system_stats", self.information),
                web.get("/object_info", self.information),
                web.post("/prompt", self.prompt),
                web.get("/ws", self.socket),
                web.get("/history/{job}", self.history),
                web.get("/view", self.view),
            ]
        )
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        defaults = {"workflow": UI, "count": 1, "assignments": [], "out": None, "on_stage": lambda *_: None}
        try:
            return await queue_jobs(url=f"http://127.0.0.1:{port}", **{**defaults, **arguments})
        finally:
            await runner.cleanup()


def test_jobs_survive_dropped_connections_and_name_their_files(tmp_path: Path) -> None:
    server, heard = FakeComfyUI([("execution_success", {})]), []
    jobs = asyncio.run(server.run(count=2, assignments=["2.cfg=3"], on_stage=lambda *x: heard.append(x)))
    assert [job.prompt_id for job in jobs] == ["job1", "job2"]
    assert [prompt["2"]["inputs"]["seed"] for prompt in server.queued] == [5, 6]
    assert all(prompt["2"]["inputs"]["cfg"] == 3 for prompt in server.queued)
    assert jobs[0].saved == ["made/a.png"]
    assert ("job 1 of 2: Sampler", 1, 3, "") in heard and ("job 2 of 2: Sampler", 2, 3, "") in heard


def test_files_are_downloaded_below_a_folder_for_each_job(tmp_path: Path) -> None:
    server = FakeComfyUI([("execution_success", {})], connections=1)
    (job,) = asyncio.run(server.run(out=tmp_path))
    assert job.downloaded == [tmp_path / "job1" / "made" / "a.png"]
    assert job.downloaded[0].read_bytes() == b"made/a.png"


def test_a_failing_node_and_a_refusal_carry_the_server_s_words() -> None:
    message = {"node_id": "2", "node_type": "Sampler", "exception_message": "Mask 0 is empty.\n"}
    server = FakeComfyUI([("execution_error", message)], connections=1)
    with pytest.raises(JobFailed, match=r"Node 2 \(Sampler\) failed: Mask 0 is empty."):
        asyncio.run(server.run())
    with pytest.raises(JobFailed, match="cancelled"):
        asyncio.run(FakeComfyUI([("execution_interrupted", {})], connections=1).run())
    with pytest.raises(JobFailed, match=r"node 2 \(Sampler\): Value not valid \(cfg, bad\)"):
        asyncio.run(server.run(assignments=["2.cfg=bad"]))


def test_a_server_that_is_not_there_or_goes_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="No ComfyUI answers at http://127.0.0.1:9"):
        asyncio.run(queue_jobs(PROMPT, "http://127.0.0.1:9", 1, [], out=None, on_stage=lambda *_: None))
    monkeypatch.setattr(comfyui_jobs, "TRIES", 2)
    broken = FakeComfyUI([])
    broken.broken = True
    with pytest.raises(ValueError, match="The connection to .* was lost"):
        asyncio.run(broken.run())


@pytest.mark.parametrize(
    ("subfolder", "filename", "expected"),
    [
        ("made", "a.png", "made/a.png"),
        ("made\\leather", "a.png", "made/leather/a.png"),
        ("", "x\\a.png", "a.png"),
        ("../../etc", "../a.png", "etc/a.png"),
        ("/etc", "a.png", "etc/a.png"),
        ("C:\\Windows\\..", "C:\\a.png", "Windows/a.png"),
        ("C:made", "D:a.png", "made/a.png"),
        ("\\\\server\\share\\x", "a.png", "x/a.png"),
    ],
)
def test_a_server_s_file_lies_below_the_folder_on_every_system(
    tmp_path: Path, subfolder: str, filename: str, expected: str
) -> None:
    assert place_of({"subfolder": subfolder, "filename": filename}, tmp_path) == tmp_path / expected
