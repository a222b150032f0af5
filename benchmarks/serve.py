"""A server under load: 20 clients at once ask `graft serve` for a photo each, again and again. How
long, and does memory grow?

    python benchmarks/serve.py PHOTOS [--model models:/graft@champion] [--clients 20] [--seconds 60]
        [--port 5059]

PHOTOS is a folder; each client posts its photos one after the other. Printed are answers per
second, the median and the 95th percentile of the time to an answer, and the server's memory after a
tenth of the time and at the end, as JSON at the end.
"""

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil

SUFFIXES = {".jpg", ".jpeg", ".png"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder")
    parser.add_argument("--model", help="as of graft serve")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--port", type=int, default=5059)
    args = parser.parse_args()
    photos = [
        path.read_bytes()
        for path in sorted(args.photos.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ][:200]
    command = [sys.executable, "-m", "graft.commands.main", "serve", "--port", str(args.port)]
    server = subprocess.Popen(command + (["--model", args.model] if args.model else []))
    try:
        wait(args.port, server)
        print(json.dumps(load(args, photos, psutil.Process(server.pid)), indent=2))
    finally:
        server.terminate()
        server.wait()


def wait(port, server):
    while server.poll() is None:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server does not start")


def load(args, photos, server):
    """Figures of `args.clients` threads that ask for `args.seconds`; server: its psutil.Process."""
    started, times, failed, memory = time.monotonic(), [], [], []

    def client(first):
        connection = http.client.HTTPConnection("127.0.0.1", args.port, timeout=60)
        for turn in range(first, 10**9):
            begin = time.monotonic()
            if begin - started > args.seconds:
                return
            connection.request(
                "POST", "/invocations", photos[turn % len(photos)], {"Content-Type": "image/jpeg"}
            )
            answer = connection.getresponse()
            answer.read()
            (times if answer.status == 200 else failed).append(time.monotonic() - begin)

    threads = [threading.Thread(target=client, args=(7 * i,)) for i in range(args.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(server.memory_info().rss / 1e6)
        time.sleep(0.5)
    seconds = time.monotonic() - started
    p50, p95 = np.percentile(times, (50, 95)) * 1e3
    return {
        "clients": args.clients,
        "seconds": round(seconds, 1),
        "answers": len(times),
        "failed": len(failed),
        "per_second": round(len(times) / seconds, 1),
        "p50_ms": round(p50),
        "p95_ms": round(p95),
        "memory_mb_warm": round(memory[len(memory) // 10]),
        "memory_mb_end": round(memory[-1]),
        "memory_mb_most": round(max(memory)),
    }


if __name__ == "__main__":
    main()
