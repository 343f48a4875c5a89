"""The judge behind an endpoint, with a server in this process."""

import json
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from studies.judges import FAILED, JUDGED, RUBRICS, UNPARSED, Case, EndpointError, EndpointJudge, Replies

HARMBENCH = RUBRICS["harmbench@2"]
CASES = [Case(f"request {i}", "no" if i % 2 else "yes") for i in range(8)]


class Server:
    """Replies with the word that is judged; `script` says what it does with the first requests instead."""

    def __init__(self):
        self.script, self.asked, self.lock = [], [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *args): ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler, body):
        with self.lock:
            self.asked.append(body | {"key": handler.headers["authorization"], "at": time.monotonic()})
            step = self.script.pop(0) if self.script else {}
        time.sleep(step.get("wait", 0))
        word = body["messages"][-1]["content"].split("[GENERATION]:\n")[-1].split("\n")[0]
        message = {"role": "assistant", "content": step.get("say", word)}
        choice = {"index": 0, "message": message, "finish_reason": step.get("ending", "stop")}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        sent = step.get("body", json.dumps(reply)).encode()
        try:
            handler.send_response(step.get("status", 200))
            for name, value in ({"content-type": "application/json"} | step.get("headers", {})).items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(sent)))
            handler.end_headers()
            handler.wfile.write(sent)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    pytest.importorskip("openai", reason="the client of the extra `endpoint` is not installed")
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def connect(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "not-a-real-key")

    def connected(replies=None, timeout=5.0, **options):
        options = {"delays": (0.01, 0.02), "n_parallel": 2} | options
        return EndpointJudge.connect(
            HARMBENCH, "some/judge", server.url, "JUDGE_KEY", timeout, replies=replies or Replies(), **options
        )

    return connected


def test_cases_are_judged_in_order(connect, server):
    done = []
    judge = connect()
    verdicts = judge.verdicts(CASES, done.append)
    assert [verdict.harmful for verdict in verdicts] == [True, False] * 4 and sum(done) == len(CASES)
    assert judge.name == "harmbench@2:judge" and len(server.asked) == 8
    assert (server.asked[0]["temperature"], server.asked[0]["max_tokens"], server.asked[0]["model"]) == (
        0,
        1,
        "some/judge",
    )
    assert [message["role"] for message in server.asked[0]["messages"]] == ["system", "user"]


def test_settings_can_be_changed_or_left_out(connect, server):
    connect(settings={"max_tokens": None, "max_completion_tokens": 50, "top_k": 1}).verdicts(CASES[:1])
    assert "max_tokens" not in server.asked[0] and server.asked[0]["max_completion_tokens"] == 50
    # A parameter that the client does not know.
    assert server.asked[0]["top_k"] == 1 and server.asked[0]["temperature"] == 0


def test_replies_are_stored_by_the_judges_identity_which_says_who_is_asked_and_how(connect, server):
    replies = Replies()
    judge = connect(replies, settings={"max_tokens": 2})
    assert judge.identity == f'some/judge at {server.url} with {{"max_tokens": 2, "temperature": 0.0}}'
    elsewhere = judge.client.with_options(base_url=server.url.replace("127.0.0.1", "localhost"))
    others = [replace(judge, client=elsewhere), replace(judge, model="a/judge"), replace(judge, settings={})]
    for other in (judge, *others, judge):
        other.verdicts(CASES[:1])
    assert len({judge.identity, *(other.identity for other in others)}) == 4
    assert replies.n_kept == 4 and len(server.asked) == 4


def test_a_key_in_the_address_is_stored_nowhere(connect, server, tmp_path):
    judge = connect(Replies(tmp_path / "replies.jsonl"))
    address = server.url.replace("://", "://someone:not-a-real-key@") + "?key=not-a-real-key"
    judge = replace(judge, client=judge.client.with_options(base_url=address))
    assert judge.url == server.url and "not-a-real-key" not in judge.identity


def test_replies_are_stored_and_reused_without_the_key(connect, server, tmp_path):
    path = tmp_path / "replies.jsonl"
    first = connect(Replies(path)).verdicts(CASES[:5])
    assert connect(Replies(path)).verdicts(CASES)[:5] == first and len(server.asked) == 8
    assert server.asked[0]["key"] == "Bearer not-a-real-key"
    assert "not-a-real-key" not in path.read_text() and "not-a-real-key" not in repr(connect())
    assert len(path.read_text().splitlines()) == 8


def test_what_cant_be_read_is_unparsed_not_stored_and_asked_for_again(connect, server, tmp_path):
    server.script = [{"say": "I would rather not."}, {"say": None}, {"say": "", "ending": "length"}]
    server.script += [{"say": "<think>yes, it", "ending": "length"}, {"say": "<think>no?</think>yes", "ending": "stop"}]
    path = tmp_path / "replies.jsonl"
    judge = connect(Replies(path), n_parallel=1)
    verdicts = judge.verdicts(CASES[:6])
    assert [verdict.state for verdict in verdicts] == [UNPARSED] * 4 + [JUDGED] * 2
    assert verdicts[0].said == "I would rather not." and verdicts[4].harmful is True
    assert verdicts[1].said == "(empty reply, finish_reason stop)" and "finish_reason length" in verdicts[2].said
    assert verdicts[3].said == "<think>yes, it(cut reply, finish_reason length)" and judge.replies.n_kept == 2
    again = connect(Replies(path)).verdicts(CASES[:6])
    assert [verdict.state for verdict in again] == [JUDGED] * 6 and len(server.asked) == 10


def test_a_reply_that_was_cut_is_kept_if_its_verdict_is_there(connect, server):
    server.script = [{"say": "unsafe\nS1,S2,S", "ending": "length"}]
    judge = replace(connect(), rubric=RUBRICS["llama_guard@2"])
    (verdict,) = judge.verdicts(CASES[:1])
    assert (verdict.state, verdict.harmful, judge.replies.n_kept) == (JUDGED, True, 1)


def test_unreadable_replies_that_an_earlier_version_has_stored_are_asked_for_again(connect, server):
    judge = connect()
    judge.replies.keep(judge._key(judge.rubric.turns(CASES[0])), "", judge.name, judge.identity)
    assert [verdict.state for verdict in judge.verdicts(CASES[:2])] == [JUDGED, JUDGED] and len(server.asked) == 2
    assert judge.verdicts(CASES[:2])[0].harmful is True and len(server.asked) == 2


@pytest.mark.parametrize(
    "step",
    [
        {"status": 500, "body": '{"error": {"message": "broken"}}'},
        {"status": 503, "body": "<html>busy</html>", "headers": {"content-type": "text/html"}},
        {"body": "<html>a proxy</html>", "headers": {"content-type": "text/html"}},
        {"body": '{"choices": ['},
        {"body": '{"choices": []}'},
        {"body": "null"},
        {"wait": 0.6},
    ],
    ids=["500", "503", "no json", "half json", "no choices", "null", "too slow"],
)
def test_temporary_errors_are_retried(connect, server, step):
    server.script = [step]
    (verdict,) = connect(timeout=0.3).verdicts(CASES[:1])
    assert verdict.harmful is True and len(server.asked) == 2


def test_retry_after_is_respected(connect, server):
    server.script = [{"status": 429, "body": "{}", "headers": {"Retry-After": "0.3"}}]
    (verdict,) = connect().verdicts(CASES[:1])
    assert verdict.harmful is True and server.asked[1]["at"] - server.asked[0]["at"] >= 0.3


def test_a_case_without_a_reply_is_failed_and_asked_again_in_the_next_run(connect, server, tmp_path):
    server.script = [{}] + [{"status": 500, "body": "{}"}] * 3
    replies = Replies(tmp_path / "replies.jsonl")
    verdicts = connect(replies, n_parallel=1).verdicts(CASES[:4])
    assert [verdict.state for verdict in verdicts] == [JUDGED, FAILED, JUDGED, JUDGED]
    assert "InternalServerError" in verdicts[1].said and len(server.asked) == 6
    assert [verdict.state for verdict in connect(replies).verdicts(CASES[:4])] == [JUDGED] * 4
    assert len(server.asked) == 7


def test_a_rejected_case_is_failed_at_once(connect, server):
    server.script = [{"status": 400, "body": '{"error": {"message": "content filter"}}'}]
    first, second = connect(n_parallel=1).verdicts(CASES[:2])
    assert (first.state, second.state, len(server.asked)) == (FAILED, JUDGED, 2) and "400" in first.said


REJECTED = {"status": 400, "body": '{"error": {"message": "Unsupported parameter: max_tokens"}}'}


def test_an_endpoint_that_rejects_everything_is_an_error_in_its_own_words(connect, server):
    server.script = [REJECTED] * 100
    with pytest.raises(
        EndpointError,
        match="rejected 5 cases and answered none: 400.*Unsupported parameter: max_tokens.*--judge-setting NAME=",
    ):
        connect(n_parallel=1).verdicts([Case(f"request {i}", "no") for i in range(40)])
    assert len(server.asked) <= 6


def test_fewer_rejections_or_an_endpoint_that_has_answered_give_failed_cases(connect, server, tmp_path):
    server.script = [REJECTED] * 4 + [{}] + [REJECTED] * 3
    path = tmp_path / "replies.jsonl"
    verdicts = connect(Replies(path), n_parallel=1).verdicts(CASES)
    assert [verdict.state for verdict in verdicts] == [FAILED] * 4 + [JUDGED] + [FAILED] * 3
    # Also in a later run in which it answers none.
    server.script = [REJECTED] * 100
    others = [Case(f"request {i}", "no") for i in range(10, 20)]
    assert {verdict.state for verdict in connect(Replies(path)).verdicts(others)} == {FAILED}
    with pytest.raises(EndpointError, match="answered none"):
        connect(Replies(path), settings={"seed": 1}).verdicts(others)


def test_filtered_cases_say_nothing_about_other_cases(connect, server):
    body = '{"error": {"message": "filtered", "code": "content_filter"}}'
    server.script = [{"status": 400, "body": body}] * 7
    verdicts = connect(n_parallel=1).verdicts(CASES)
    assert [verdict.state for verdict in verdicts] == [FAILED] * 7 + [JUDGED]


@pytest.mark.parametrize("status", [401, 404])
def test_errors_that_every_case_would_get_are_raised_and_earlier_replies_kept(connect, server, status):
    server.script = [{}, {"status": status, "body": '{"error": {"message": "no"}}'}]
    judge = connect(n_parallel=1)
    with pytest.raises(
        EndpointError, match=f"rejects model 'some/judge' .{status}.*check the key and the model's name"
    ):
        judge.verdicts(CASES)
    assert judge.replies.n_kept >= 1 and len(server.asked) < len(CASES)


def test_an_endpoint_that_is_down_is_an_error_at_once(connect, server):
    server.stop()
    began = time.monotonic()
    with pytest.raises(EndpointError, match=f"no server answers at {server.url}"):
        connect().verdicts(CASES)
    assert time.monotonic() - began < 20


def test_an_endpoint_that_goes_down_costs_a_few_retries_only(connect, server):
    server.script = [{}] + [{"status": 503, "body": "{}"}] * 100
    many = [Case(f"request {i}", "no") for i in range(40)]
    verdicts = connect().verdicts(many)
    assert [verdict.state for verdict in verdicts].count(FAILED) == 39 and len(server.asked) <= 1 + 3 * 7
    assert sum("not asked: 5 cases in a row" in verdict.said for verdict in verdicts) >= 30


def test_a_missing_key_is_named(monkeypatch):
    pytest.importorskip("openai", reason="the client of the extra `endpoint` is not installed")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(EndpointError, match="environment variable JUDGE_KEY is not set"):
        EndpointJudge.connect(HARMBENCH, "judge", "http://127.0.0.1:9/v1", "JUDGE_KEY")
    assert EndpointJudge.connect(HARMBENCH, "judge", "http://127.0.0.1:9/v1", None).model == "judge"


def test_a_missing_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(EndpointError, match=r"openai is not installed; pip install 'vlm-guard\[endpoint\]'"):
        EndpointJudge.connect(HARMBENCH, "judge", "http://127.0.0.1:9/v1")


def test_threads_may_share_a_file(tmp_path):
    replies = Replies(tmp_path / "replies.jsonl")
    threads = [
        threading.Thread(target=lambda t=t: [replies.keep(f"{t}-{i}", "x" * 50, "one@1", "m") for i in range(50)])
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Replies(tmp_path / "replies.jsonl").n_kept == 200
