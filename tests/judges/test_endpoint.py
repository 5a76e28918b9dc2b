"""The judge against a real HTTP server that delays, drops, returns garbage and fails."""

import json
import logging
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jvlmm.data.example import Example
from jvlmm.errors import ConfigError
from jvlmm.judges.endpoint import EndpointJudge, EndpointOptions
from jvlmm.judges.verdict import Case

KEY = "sk-not-to-be-seen"
GOOD = {"feedback": "The answer is wrong. Look at the end.", "answer": 0, "cause": "wrong time"}


def completion(content):
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


class Handler(BaseHTTPRequestHandler):
    """Does what the response to be judged asks for."""

    def do_GET(self):
        self.reply(401 if self.server.refuses else 200, b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = json.loads(body["messages"][1]["content"])["given response"]
        with self.server.lock:
            self.server.asked.append((what, self.headers.get("Authorization"), body))
            count = sum(asked == what for asked, *_ in self.server.asked)
        match what.split()[0]:
            case "delay":
                self.server.release.wait(20)
            case "drip":
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                while not self.server.release.wait(0.05):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                return
            case "drop":
                self.close_connection = True
                return
            case "garbage":
                return self.reply(200, b"\x00<html>")
            case "prose":
                return self.reply(200, completion("It is wrong, I think."))
            case "form":
                return self.reply(200, completion(json.dumps({**GOOD, "answer": 7})))
            case "500":
                return self.reply(500, b"")
            case "400":
                return self.reply(400, KEY.encode())
            case "recovers" if count < 3:
                return self.reply(503, b"")
        self.reply(200, completion(json.dumps(GOOD)))

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        with suppress(OSError):  # whoever asked has gone
            super().handle()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock, server.asked, server.refuses, server.release = threading.Lock(), [], False, threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make(server, monkeypatch):
    monkeypatch.setenv("JVLMM_TEST_KEY", KEY)

    def make(**options):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        given = {"key_variable": "JVLMM_TEST_KEY", "backoff_s": 0.01, "deadline_s": 5.0, **options}
        return EndpointJudge(EndpointOptions(url, "some-model", **given))

    return make


def case(text):
    return Case(Example("e", "Which way?", "B", "mcq", options=("left", "right")), text)


def test_a_verdict_is_asked_for_with_all_that_is_known(make, server):
    (found,) = make()([case("fine <answer>A</answer>")])
    assert (found.feedback, found.answer, found.cause) == (GOOD["feedback"], 0.0, "wrong time")
    ((_, authorization, body),) = server.asked
    assert authorization == f"Bearer {KEY}" and body["model"] == "some-model" and body["temperature"] == 0
    seen = json.loads(body["messages"][1]["content"])
    assert seen["true answer"] == "B" and seen["given answer"] == "A" and "B. right" in seen["question"]


@pytest.mark.parametrize(
    ("what", "reason", "times"),
    [
        ("drop", "RemoteDisconnected", 3),
        ("garbage", "no chat completion", 3),
        ("prose", "no JSON", 3),
        ("form", "another form of verdict", 3),
        ("500", "HTTP 500", 3),
        ("400", "HTTP 400", 1),
    ],
)
def test_failures_are_counted_by_reason_and_cost_nothing_else(make, server, what, reason, times):
    judge = make()
    first, broken, last = judge([case("one"), case(what), case("two")])
    assert first and last and broken is None and judge.failures == {reason: 1}
    assert sum(asked == what for asked, *_ in server.asked) == times


def test_what_fails_for_a_while_is_asked_again(make, server):
    judge = make()
    assert judge([case("recovers")])[0] and not judge.failures and len(server.asked) == 3


@pytest.mark.parametrize("what", ["delay", "drip"])
def test_nobody_waits_past_the_deadline(make, what):
    judge = make(deadline_s=0.6, concurrency=2)
    begun = time.monotonic()
    cases = [case("one"), case(what), *(case(f"{what} {n}") for n in range(3))]
    found = judge(cases)
    assert time.monotonic() - begun < 1.5
    assert found[0] and found[1:] == [None] * 4 and judge.failures == {"deadline": 4}


def test_so_many_at_once(make, server):
    judge = make(concurrency=4, deadline_s=1.0)
    threading.Timer(0.5, server.release.set).start()
    assert all(judge([case(f"delay {n}") for n in range(4)])), "they wait beside one another"


def test_verdicts_are_kept(make, server, tmp_path):
    judge = make(cache=str(tmp_path))
    assert judge([case("one"), case("500")])[0]
    (kept,) = tmp_path.iterdir()
    again = make(cache=str(tmp_path))
    assert again([case("one")])[0] and sum(asked == "one" for asked, *_ in server.asked) == 1
    kept.write_text("half a ver")
    assert again([case("one")])[0] and sum(asked == "one" for asked, *_ in server.asked) == 2
    assert KEY not in kept.read_text() and KEY not in kept.name


def test_the_key_stands_nowhere(make, caplog, capfd):
    judge = make()
    with caplog.at_level(logging.DEBUG):
        judge([case("400"), case("500"), case("drop")])
    assert KEY not in caplog.text + "".join(capfd.readouterr()) + repr(judge) + repr(judge.failures)


def test_a_judge_that_is_not_there_is_refused_at_the_start(make, server, monkeypatch):
    make().check()
    server.refuses = True
    with pytest.raises(ConfigError, match="refuses the key.*JVLMM_TEST_KEY"):
        make().check()
    nobody = EndpointOptions("http://127.0.0.1:9/v1", "m", deadline_s=1.0)
    with pytest.raises(ConfigError, match="does not answer.*judge.optional=true"):
        EndpointJudge(nobody).check()
    absent = EndpointJudge(EndpointOptions("http://127.0.0.1:9/v1", "m", deadline_s=1.0, optional=True))
    absent.check()
    assert absent([case("one")]) == [None] and absent.failures.total() == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@localhost:8000/v1",
        "https://hunter2@localhost/v1",
        "http://user:hunter2/#?@@localhost/v1",
        "https://localhost/v1?key=hunter2",
        "https://localhost/v1#hunter2",
        "user:hunter2@localhost",
        "ftp://user:hunter2@localhost",
    ],
)
def test_an_address_with_credentials_is_refused_without_showing_them(url):
    with pytest.raises(ConfigError, match="judge.key_variable") as raised:
        EndpointOptions(base_url=url, model="m")
    assert "hunter2" not in str(raised.value) and "user:" not in str(raised.value)
    assert "localhost" in str(raised.value)


@pytest.mark.parametrize("url", ["http://localhost:port/v1", "http://[::1/v1", "http://", "x"])
def test_what_is_no_address_is_one_line(url):
    with pytest.raises(ConfigError, match="is no http or https address"):
        EndpointOptions(base_url=url, model="m")


@pytest.mark.parametrize("options", [{"base_url": "ftp://x"}, {"concurrency": 0}, {"deadline_s": 0}, {"backoff_s": -1}])
def test_options_that_cannot_be(options):
    with pytest.raises(ConfigError, match="judge."):
        EndpointOptions(**{"base_url": "http://x/v1", "model": "m", **options})
