"""Endpoints that reply too slowly, too much, elsewhere, with other types, or with the key that they were sent."""

import gzip
import json
import time

import pytest

from studies.judges import FAILED, JUDGED, UNPARSED, EndpointError, Replies
from tests.studies.judges.test_endpoint import CASES, HARMBENCH, Server, connect, server  # noqa: F401

KEY = "not-a-real-key"


def completion(content, **choice) -> str:
    message = {"role": "assistant", "content": content}
    body = {"index": 0, "message": message, "finish_reason": "stop"} | choice
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [body]})


ODD = {
    "a number": completion(3),
    "a list": completion([{"type": "text", "text": "yes"}]),
    "an object": completion({"yes": 1}),
    "a truth value": completion(True),
    "an ending of another type": completion("yes", finish_reason=7),
    "no choices": json.dumps({"choices": 5}),
    "a list of nothing": json.dumps({"choices": [None]}),
    "a bare number": "12",
    "nothing": "",
    "depth": "[" * 100_000,
    "half a body": completion("yes")[:40],
    "a huge number": '{"choices": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("kind", ODD)
def test_a_reply_of_another_type_fails_its_case_alone_and_is_not_kept(kind, server, connect, tmp_path):  # noqa: F811
    server.script = [{}, {"body": ODD[kind]}, {"body": ODD[kind]}, {"body": ODD[kind]}]
    judge = connect(Replies(tmp_path / "replies.jsonl"), n_parallel=1)
    verdicts = judge.verdicts(CASES[:3])
    assert [verdict.state for verdict in verdicts] == [JUDGED, FAILED, JUDGED]
    # The next run asks for it again, and for nothing else.
    n_asked = len(server.asked)
    again = connect(Replies(tmp_path / "replies.jsonl")).verdicts(CASES[:3])
    assert [verdict.state for verdict in again] == [JUDGED] * 3 and len(server.asked) == n_asked + 1


def test_half_a_surrogate_is_text_that_can_be_written(server, connect, tmp_path):  # noqa: F811
    server.script = [{"body": completion("yes \ud83d")}]
    path = tmp_path / "replies.jsonl"
    connect(Replies(path)).verdicts(CASES[:1])
    json.dumps([verdict.said for verdict in connect(Replies(path)).verdicts(CASES[:1])]).encode("utf-8")


@pytest.mark.parametrize("entry", [3, [], {"key": 1, "said": "yes"}, {"key": "k", "said": 3}, "[" * 100_000])
def test_lines_that_hold_no_reply_are_passed_over(entry, tmp_path):
    path = tmp_path / "replies.jsonl"
    good = json.dumps({"key": "a", "said": "yes", "identity": "one"})
    bad = entry if isinstance(entry, str) else json.dumps(entry)
    path.write_text(f"{bad}\n{good}\n")
    replies = Replies(path)
    assert replies.n_kept == 1 and replies.get("a") == "yes"


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nx-slow: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["headers", "body"])
def test_a_reply_that_never_ends_is_given_up(start, server, connect):  # noqa: F811
    def drip(handler, body):
        try:
            for piece in (start, *[b" "] * 200):
                handler.wfile.write(piece)
                handler.wfile.flush()
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass

    server.answer = drip
    verdicts = connect(timeout=0.3, delays=()).verdicts(CASES[:1])
    # The whole of it would take ten seconds; a read of it never takes long.
    assert verdicts[0].state == FAILED and "took more than 0.3 seconds as a whole" in verdicts[0].said


def test_a_short_word_in_the_address_is_not_cut_out_of_replies(server, connect):  # noqa: F811
    judge = connect()
    judge.client.base_url = f"{server.url}?v=yes"
    assert judge.without_secrets("yes") == "yes"
    judge.client.base_url = f"{server.url}?key=a+long/secret&key=another-long-one"
    assert judge.without_secrets("a long/secret a%20long%2Fsecret another-long-one") == "[hidden] [hidden] [hidden]"


def test_proxies_of_the_environment_are_used(connect, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    proxied = connect().client._client
    assert any(transport is not None for transport in proxied._mounts.values())


def test_a_reply_that_is_too_large_is_given_up(server, connect):  # noqa: F811
    server.script = [{"body": completion("yes" * 3_000_000)}]
    verdicts = connect(delays=()).verdicts(CASES[:1])
    assert verdicts[0].state == FAILED and "more than 8000000 bytes" in verdicts[0].said


def test_a_compressed_reply_is_not_unpacked(server, connect, monkeypatch):  # noqa: F811
    def compressed(handler, body):
        sent = gzip.compress(b" " * 50_000_000)
        handler.send_response(200)
        handler.send_header("content-encoding", "gzip")
        handler.send_header("content-length", str(len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    server.answer = compressed
    verdicts = connect(delays=()).verdicts(CASES[:1])
    assert verdicts[0].state == FAILED and "compressed" in verdicts[0].said


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_request_is_sent_on_to_another_server(status, server, connect):  # noqa: F811
    other = Server()
    try:
        server.script = [{"status": status, "headers": {"location": f"{other.url}/chat/completions?key={KEY}"}}]
        with pytest.raises(EndpointError, match=f"sends requests on to another address \\({status}\\)") as caught:
            connect().verdicts(CASES[:1])
        assert not other.asked and KEY not in str(caught.value)
    finally:
        other.stop()


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_an_echoed_key_reaches_no_message_verdict_or_file(status, server, connect, tmp_path, capsys):  # noqa: F811
    body = completion(f"I was sent {KEY}. yes") if status == 200 else json.dumps({"error": {"message": f"bad {KEY}"}})
    server.script = [{"status": status, "body": body}] * 8
    judge = connect(Replies(tmp_path / "replies.jsonl"), delays=())
    try:
        said = " ".join(verdict.said for verdict in judge.verdicts(CASES[:2]))
    except EndpointError as error:
        said = str(error)
        assert error.__cause__ is None
    captured = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert KEY not in said + captured.out + captured.err + written + repr(judge)
    assert "[hidden]" in said or UNPARSED in said or status == 200
