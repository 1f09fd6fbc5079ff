"""What the HTTP API costs: processor time a job and a poll, and a running clip's time beside many polls.

Both are ratios or differences of runs made in turn, by `sgm app` itself. See README.md.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
import uvicorn
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PICTURE = ROOT / "app" / "samples" / "lake.jpg"
CLIENTS = 20  # each with a key and a job of its own: one may ask 150 times in 10 seconds
_POLLS = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.api import poll
poll(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
"""


def overhead(jobs: int) -> tuple[float, float]:
    """Processor seconds a job, of the table alone and with the API before it: submitted, polled four times, fetched.

    The clip's own time is left out: its runner has it ready. The client is in the same process: its time counts.
    """
    import app.jobs
    from app.api import application
    from app.jobs import Table
    from sgm import Clip, VideoRequest, open_picture

    request = VideoRequest(frames=2, steps=1, width=128, height=64)
    frames = np.zeros((2, 64, 128, 3), np.uint8)
    file = io.BytesIO()
    Image.open(PICTURE).resize((1024, 576)).save(file, "JPEG")
    picture = file.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        table = app.jobs._table = Table(Path(folder), lambda *_: Clip(frames, 7, request.settings()))
        server = uvicorn.Server(uvicorn.Config(application(), port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v2beta/image-to-video"

        def directly(_: int) -> None:
            job = table.submit(request, open_picture(picture), "lake")
            table.wait(job.id)
            table.video(job)

        def by_api(number: int) -> None:
            headers = {"authorization": f"Bearer {number}"}
            settings = {"frames": "2", "steps": "1", "width": "128", "height": "64"}
            with requests.Session() as session:
                files = {"image": ("lake.jpg", picture)}
                answer = session.post(address, files=files, data=settings, headers=headers)
                result = f"{address}/result/{answer.json()['id']}"
                while session.get(result, headers=headers).status_code == 202:
                    time.sleep(0.02)
                for _ in range(3):
                    session.get(result, headers=headers)

        seconds: dict[Any, list[float]] = {directly: [], by_api: []}
        for number in range(jobs):
            for way, took in seconds.items():
                before = time.process_time()
                way(number)
                took.append(time.process_time() - before)
        server.should_exit = True
        thread.join()
        table.close()
    one, other = (statistics.median(took[1:]) for took in seconds.values())
    return one, other


@contextmanager
def serving() -> Iterator[tuple[int, int, Path]]:
    """Run `sgm app` until the block ends; yields its process's id, its port and its outputs folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SGM_OUTPUTS": folder}
        command = [sys.executable, "-m", "sgm.cli", "app", "--no-browser", "--port", str(port)]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    requests.get(f"http://127.0.0.1:{port}/api/versions", timeout=60)
                    break
                except requests.ConnectionError:
                    time.sleep(0.2)
            yield server.pid, port, Path(folder)
        finally:
            server.terminate()
            server.wait()


def poll(port: int, rate: float, jobs: list[str]) -> None:
    """Ask for each job, each with its own key, so often that there are `rate` requests a second, until killed.

    By bare sockets, since the clients' own time is not to be measured.
    """
    clients = []
    for number, job in enumerate(jobs):
        head = f"GET /v1/videos/{job} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {number}\r\n\r\n"
        clients.append((socket.create_connection(("127.0.0.1", port)), head.encode()))
    counted, due = 0, time.monotonic()
    for client, question in itertools.cycle(clients):
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        client.sendall(question)
        answer = b""
        while not answer.endswith(b"}"):
            answer += client.recv(1 << 16)
        counted += answer.startswith(b"HTTP/1.1 200")
        print(counted, flush=True)


def loop_seconds(pid: int) -> float:
    """Processor seconds of a server's event loop so far, which its first thread runs; nan but on Linux."""
    told = Path(f"/proc/{pid}/task/{pid}/schedstat")
    return int(told.read_text().split()[0]) / 1e9 if told.is_file() else math.nan


def clip_seconds(pid: int, port: int, folder: Path, rate: float, steps: int) -> tuple[float, float, float]:
    """Seconds that a clip took with CLIENTS jobs in the queue; how many polls were answered in each of them, and
    processor seconds that each took the server's event loop.
    """
    address = f"http://127.0.0.1:{port}/v1/videos"
    headers = [{"authorization": f"Bearer {number}"} for number in range(CLIENTS)]
    jobs = []
    for one in headers:
        files = {"input_reference": PICTURE.open("rb")}
        answer = requests.post(address, files=files, data={"num_inference_steps": str(steps)}, headers=one, timeout=60)
        jobs.append(answer.json()["id"])
    command = [sys.executable, "-c", _POLLS, str(ROOT), str(port), str(rate or 1), *jobs]
    polls = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if rate else None
    before = loop_seconds(pid)
    record = folder / jobs[0].removeprefix("video_") / "job.json"
    while (told := json.loads(record.read_text("utf-8")))["state"] in ("queued", "running"):
        time.sleep(0.2)
    answered = each = 0.0
    if polls:
        took = loop_seconds(pid) - before
        polls.kill()
        count = int(polls.communicate()[0].split()[-1])
        answered, each = count / told["seconds"], took / count
    for job, one in reversed(list(zip(jobs, headers, strict=True))):
        requests.delete(f"{address}/{job}", headers=one, timeout=60)
    assert told["state"] == "done", told["message"]
    time.sleep(10)  # the limit of requests in 10 seconds
    return told["seconds"], answered, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20, help="for the time a job; two at least")
    parser.add_argument("--repeat", type=int, default=3, help="clips with polls, and as many without")
    parser.add_argument("--rate", type=float, default=200, help="polls a second")
    parser.add_argument("--steps", type=int, default=25, help="of each clip")
    arguments = parser.parse_args()
    alone, with_api = overhead(arguments.jobs)
    print(f"a job: {1000 * alone:.1f} ms of CPU, {1000 * with_api:.1f} ms with API and client", flush=True)
    print(f"overhead {1000 * (with_api - alone):.1f} ms")
    seconds: dict[float, list[float]] = {0.0: [], arguments.rate: []}
    costs = []
    with serving() as server:
        clip_seconds(*server, 0.0, 1)  # loads the model
        for _ in range(arguments.repeat):
            for rate, took in seconds.items():
                clip, answered, each = clip_seconds(*server, rate, arguments.steps)
                took.append(clip)
                costs += [each] if rate else []
                print(f"{rate:3g} polls a second ({answered:.0f} answered): clip in {clip:.2f} s", flush=True)
    without, polled = (statistics.median(took) for took in seconds.values())
    print(f"a poll: {1e6 * statistics.median(costs):.0f} µs of CPU of the server's event loop")
    print(f"ratio {polled / without:.3f}")


if __name__ == "__main__":
    main()
