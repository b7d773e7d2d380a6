"""``report --serve``: the page follows its run, in a real browser too, and nothing but the page can be had."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from chromium import Chromium
from counterpoint.errors import RunError
from counterpoint.report import _live, page_of
from counterpoint.report._live import LivePage
from counterpoint.report.serving import ReportServer, open_server


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_live, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(_live, "BUSY_SHARE", 1.0)


@pytest.fixture
def server(run_dir, impatient):
    with serving(open_server(run_dir, port=0)) as running:
        yield running


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def add_step(run_dir, step=61):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "reward/math": 0.5}) + "\n")


@pytest.mark.parametrize("host", ["", " ", "\t", "localhost", "127.0.0.1", "127.0.0.2", "127.1", "127.0.1"])
def test_no_host_and_every_name_of_this_machine_is_this_machine_alone(host, run_dir, impatient):
    with open_server(run_dir, host=host, port=0) as server:
        assert server.server_address[0].startswith("127.")
        assert server.loopback
    with serving(open_server(run_dir, host=host, port=0)) as server:
        address, port = server.server_address
        for asked, status in ((server.host, 200), ("localhost", 200), ("evil.example", 403), ("", 403)):
            connection = http.client.HTTPConnection(address, port, timeout=20)
            connection.request("GET", "/version", headers={"Host": asked})
            assert connection.getresponse().status == status


@pytest.mark.parametrize("host", ["0.0.0.0", "0"])
def test_an_address_of_all_networks_is_known_as_such(host, run_dir):
    with open_server(run_dir, host=host, port=0) as server:
        assert not server.loopback


@pytest.mark.parametrize(("host", "warned"), [("", False), (" ", False), ("127.1", False), ("0", True)])
def test_the_command_says_when_others_can_read_the_page(host, warned, run_dir):
    command = [sys.executable, "-m", "counterpoint", "report", str(run_dir), "--serve", "--host", host, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert line.startswith("http://127.0.0.1:" if not host.strip() else f"http://{host}:")
    assert ("Everybody" in told) is warned


def test_the_page_follows_the_files(run_dir, server):
    _, _, page = ask(server, "/")
    before = json.loads(ask(server, "/version")[2])
    assert f'data-version="{before["version"]}"' in page
    assert json.loads(ask(server, "/version")[2]) == before
    add_step(run_dir)
    after = json.loads(ask(server, "/version")[2])
    assert after["version"] != before["version"]
    assert after["problem"] is None
    part = ask(server, "/content")[2]
    assert f'data-version="{after["version"]}"' in part
    assert "<dd>61" in part
    assert "<dd>61" not in page
    assert len(part) < 1_000_000 < len(page)
    assert "<script>" not in part


def test_a_page_that_cannot_be_made_leaves_the_old_one_with_the_reason(run_dir, server):
    page = ask(server, "/")[2]
    hidden = run_dir.with_name("moved")
    run_dir.rename(hidden)
    assert "found nothing" in json.loads(ask(server, "/version")[2])["problem"]
    assert ask(server, "/")[2] == page
    hidden.rename(run_dir)
    assert json.loads(ask(server, "/version")[2])["problem"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml",
        "/run.json",
        "/../run.json",
        "//run.json",
        "/%2e%2e/run.json",
        "/diagnosis/",
        "/report.html/x",
        "*",
    ],
)
def test_nothing_but_the_page_can_be_had(server, path):
    status, _, body = ask(server, path)
    assert status == 404
    assert "There is nothing here" in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(server, method):
    assert ask(server, "/", method)[0] == 501


def test_a_foreign_name_is_refused_on_loopback(server):
    assert ask(server, "/version", Host="evil.example:8377")[0] == 403
    for name in ("", "[", "[::1", "a@[b", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.1"):
        assert ask(server, "/version", Host=name)[0] == 403
    for name in ("localhost", "127.0.0.1", f"localhost:{server.server_address[1]}", "[::1]:80"):
        assert ask(server, "/version", Host=name)[0] == 200


def test_headers_keep_the_page_to_itself(server):
    status, headers, body = ask(server, "/", "HEAD")
    assert (status, body) == (200, "")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


def test_only_a_served_page_may_ask_its_server(run_dir, server):
    policy = re.compile(r'Content-Security-Policy" content="([^"]*)"')
    assert "connect-src &#39;self&#39;;" in policy.search(ask(server, "/")[2]).group(1)
    written = page_of(run_dir)
    assert "connect-src" not in policy.search(written).group(1)
    assert 'id="live"' not in written


def test_a_taken_port_and_a_foreign_address_are_one_clear_error(run_dir, server):
    port = server.server_address[1]
    with pytest.raises(RunError, match=rf"Cannot serve at 127\.0\.0\.1, port {port} .*--port 0 for any free one"):
        open_server(run_dir, port=port)
    with pytest.raises(RunError, match=r"Cannot serve at 192\.0\.2\.1"):
        open_server(run_dir, host="192.0.2.1", port=0)
    with pytest.raises(RunError, match="from 0 to 65535, found 70000"):
        open_server(run_dir, port=70000)
    with pytest.raises(RunError, match="is no run directory"):
        open_server(run_dir.parent, port=0)


def test_a_page_that_takes_long_is_made_seldom(run_dir, monkeypatch):
    made = []
    live = LivePage([run_dir], lambda version: made.append(version) or "")
    add_step(run_dir)
    live.now()
    assert len(made) == 1  # within the pause
    monkeypatch.setattr(live, "_not_before", 0.0)
    live.now()
    assert len(made) == 2
    live.now()
    assert len(made) == 2  # nothing has changed


def test_ctrl_c_ends_it_cleanly(run_dir):
    command = [sys.executable, "-m", "counterpoint", "report", str(run_dir), "--serve", "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that runs in the background of a shell inherits a SIGINT that is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert re.match(r"http://127\.0\.0\.1:\d+/  Ctrl-C ends it", process.stdout.readline())
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err) == (0, "Ended.\n", "")


def test_an_option_of_serving_alone_is_refused(run_dir):
    command = [sys.executable, "-m", "counterpoint", "report", str(run_dir), "--port", "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--port says where to serve the page. Add --serve" in done.stderr


def test_ipv6_has_brackets(run_dir):
    if not socket.has_ipv6 or not _has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback to serve at")
    with serving(ReportServer("::1", 0, LivePage([run_dir], lambda version: "page"))) as server:
        assert server.url.startswith("http://[::1]:")


def _has_ipv6_loopback():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_chromium_shows_what_a_run_adds_without_loading_again(run_dir, server, browser, tmp_path, monkeypatch):
    asked = []

    def now():
        asked.append(len(asked))
        if len(asked) == 4:  # the page, then looks for news
            add_step(run_dir)
        return LivePage.now(server.live)

    monkeypatch.setattr(server.live, "now", now)
    document, console = browser.load(server.url, tmp_path / "profile")
    assert console == []
    assert "<dd>61" in document
    assert re.search(r'role="status"[^>]*>live, as of', document)
    assert document.count("main-svg") > 10
    assert document.count("<script>") == 3  # it is still the first document


def test_what_a_reader_has_set_stays_when_news_come(run_dir, server, chromium_command, tmp_path):
    with Chromium(chromium_command, tmp_path / "profile") as page:
        page.open(server.url)
        page.wait("document.querySelectorAll('.main-svg').length > 10")
        page.click('button[data-domain="2"]')
        page.click("#sample-more")
        for control, value in (("#pair", "2"), ("#sample-order", "gain"), ("#moment", "10")):
            page.set(control, value)
        page.run("document.querySelector('details').open = true; scrollTo(0, 1500)")
        page.run("window.plot = document.getElementById('curve-reward'); 0")
        add_step(run_dir)
        page.wait("document.querySelector('.facts').textContent.includes('61')")
        assert page.run("scrollY") == 1500
        assert page.run("document.querySelector('details').open")
        assert page.run("['pair', 'sample-order', 'moment'].map((id) => document.getElementById(id).value)") == [
            "2", "gain", "10",
        ]  # fmt: skip
        assert page.run("[...document.querySelectorAll('#samples article')].every((item) => !item.hidden)")
        assert page.run("document.querySelector('button[data-domain=\"2\"]').ariaPressed") == "false"
        # The plot itself is still the same one, with the new point in it.
        assert page.run("document.getElementById('curve-reward') === window.plot")
        assert page.run("Math.max(...window.plot.data[0].x)") == 61
        assert page.problems == []


def test_chromium_says_when_the_server_is_gone(run_dir, impatient, browser, tmp_path, monkeypatch):
    with serving(open_server(run_dir, port=0)) as server:
        shown = server.live.now()
        states = iter([shown])

        def now():
            found = next(states, None)
            if found is None:
                raise ConnectionResetError
            return found

        monkeypatch.setattr(server.live, "now", now)
        document, _ = browser.load(server.url, tmp_path / "profile")
    assert "the server does not answer; this is what it said last" in document
