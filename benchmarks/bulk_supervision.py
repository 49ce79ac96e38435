"""Targets for 5,000 questions by a language model at once: memory while it runs, a kill midway, the resume.

    .venv/bin/python benchmarks/bulk_supervision.py            # writes results/bench/bulk_supervision.json

The model is a scripted server on loopback in a process of its own; it answers after 5 ms and counts the requests.
"""
from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from judge_server import serving

from dyme_core import config, utils
from dyme_core.data.datasets import mini_records
from dyme_core.supervision.factory import Experts

ROOT = Path(__file__).resolve().parents[1]
COUNT, KILL_AT, DELAY_S = 5000, 0.4, 0.005
logger = logging.getLogger(__name__)


def work(folder: Path, base_url: str) -> None:
    """Write every target, its recording beside it; a line of JSON per chunk: done, resident memory in MiB."""
    records = mini_records("train", COUNT, 0)
    settings = config.Supervision(backend="api", policy="raise", recording=str(folder / "replies.sqlite"), model="scripted",
                                  base_url=base_url)
    done = 0
    with Experts(settings, config.Paths(ROOT, "mini"), folder) as experts:
        for first in range(0, COUNT, 250):
            experts.offline(records[first: first + 250])
            done += 250
            memory = psutil.Process().memory_info().rss / 2**20
            counts = experts.client.counts()
            sys.stdout.write(json.dumps({"done": done, "rss_mib": round(memory, 1), "calls": counts["calls"],
                                         "hits": counts["hits"]}) + "\n")
            sys.stdout.flush()


def run(folder: Path, base_url: str, kill_at: int | None) -> tuple[list[dict], float]:
    """One worker, killed by SIGKILL soon after `kill_at` targets; its lines and seconds."""
    start, lines = time.monotonic(), []
    command = [sys.executable, __file__, "work", str(folder), base_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        for line in worker.stdout:
            lines.append(json.loads(line))
            logger.info("%s", line.strip())
            if kill_at and lines[-1]["done"] >= kill_at:
                time.sleep(0.2)  # into the next chunk, with calls under way
                os.kill(worker.pid, signal.SIGKILL)
    return lines, time.monotonic() - start


def main() -> None:
    """Kill a first worker on the way, let a second one finish, and a third find everything recorded."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    count, found = [], {}
    with serving(COUNT, DELAY_S) as (base_url, asked), tempfile.TemporaryDirectory() as place:
        for name, kill_at in (("killed", int(KILL_AT * COUNT)), ("resumed", None), ("again", None)):
            lines, seconds = run(Path(place), base_url, kill_at)
            count.append(asked())
            found[name] = {"seconds": round(seconds, 1), "requests": count[-1] - sum(count[-2:-1]), "lines": lines}
    rest = found["resumed"]["lines"]
    distinct = len({(record.question, record.supervision) for record in mini_records("train", COUNT, 0)})
    result = {"items": COUNT, "distinct": distinct, "requests": count[-1], "asked_twice": count[-1] - distinct,
              "rss_growth_mib": rest[-1]["rss_mib"] - rest[len(rest) // 4]["rss_mib"], **found,
              **utils.provenance(ROOT)}
    utils.write_json(ROOT / "results" / "bench" / "bulk_supervision.json", result)
    logger.info("%d items, %d requests, %d asked twice, memory grew by %.1f MiB", COUNT, count[-1], result["asked_twice"],
                result["rss_growth_mib"])


if __name__ == "__main__":
    work(Path(sys.argv[2]), sys.argv[3]) if sys.argv[1:2] == ["work"] else main()
