"""The client against a real server on this machine: what it sends, what it waits for, what it gives up."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
from chat_server import Answer

from crosstrace.tracer.labels.client import BudgetSpentError, ChatClient, LabelServer, ServerError, StoppedError
from crosstrace.tracer.labels.messages import delimited

DATA = delimited({"label": "Texas", "texts": ["Dallas is in Texas", "Paris"]})


class Waits(list):
    """Notes how long a client would wait, and does not wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def client_of(server, waits, **settings) -> ChatClient:
    budget = settings.pop("budget", None)
    return ChatClient(LabelServer(server.base_url, "some-model", **settings), budget, waits)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_it_asks_as_the_api_wants_and_reads_the_answer(server, waits, stream):
    server.stream = stream
    with client_of(server, waits) as client:
        assert client.ask("do this", DATA) == "[1, 0]"
    [request] = server.requests
    assert request["model"] == "some-model"
    assert request["messages"] == [{"role": "system", "content": "do this"}, {"role": "user", "content": DATA}]
    assert request["temperature"] == 0
    assert client.sent == 1


@pytest.mark.parametrize(
    "broken",
    [
        Answer(500, "oops"),
        Answer(503, '{"error": {"message": "loading the model"}}'),
        Answer(drop=True),
        Answer(200, "<html>", {"Content-Type": "text/html"}),
        Answer(200, '{"choices": []}'),
        Answer(200, "data: {\n\n", {"Content-Type": "text/event-stream"}),
        Answer(200, 'data: {"choices": [{"delta": {"content": "[1"}}]}\n\n', {"Content-Type": "text/event-stream"}),
        Answer(200, 'data: {"error": {"message": "overloaded"}}\n\n', {"Content-Type": "text/event-stream"}),
    ],
    ids=["500", "503", "dropped", "html", "no-choice", "broken-event", "cut-stream", "error-in-stream"],
)
def test_what_fails_for_now_is_asked_again_ever_later(server, waits, broken):
    server.script = [broken, broken]
    with client_of(server, waits) as client:
        assert client.ask("", DATA) == "[1, 0]"
        assert client.sent == 3
    assert 0.3 < waits[0] < 0.7 < waits[1] < 1.3


def test_a_rate_limit_is_waited_for_as_long_as_it_says(server, waits):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.script = [
        Answer(429, "slow down", {"Retry-After": "7.5"}),
        Answer(429, "slow down", {"Retry-After": date}),
        Answer(429, "slow down", {"Retry-After": "soon"}),
        Answer(429, "slow down", {"Retry-After": "-3"}),
    ]
    with client_of(server, waits) as client:
        client.ask("", DATA)
    assert waits[0] == 7.5
    assert 20 < waits[1] <= 30
    assert waits[2] < 3
    assert waits[3] == 0


def test_it_gives_up_after_its_repetitions_and_says_why(server, waits):
    server.script = [Answer(502, '{"error": {"message": "bad\\ngateway"}}')] * 3
    with client_of(server, waits, retries=2) as client, pytest.raises(ServerError) as error:
        client.ask("", DATA)
    assert "does not answer after 3 requests: 502" in str(error.value)
    assert str(error.value).endswith("bad gateway")
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(400, '{"error": {"message": "context too long"}}'), "refuses: 400 Bad Request: context too long"),
        (Answer(404, "nothing"), "the address should end before /chat/completions"),
        (Answer(401, "{}"), "name the variable that holds the key with --api-key-env"),
        (Answer(302, "", {"Location": "http://elsewhere"}), "refuses: 302"),
    ],
    ids=["400", "404", "401", "redirect"],
)
def test_what_is_refused_for_good_is_not_asked_again(server, waits, answer, said):
    server.script = [answer]
    with client_of(server, waits) as client, pytest.raises(ServerError) as error:
        client.ask("", DATA)
    assert said in str(error.value)
    assert client.sent == 1


def test_the_key_is_sent_and_never_said(server, waits):
    server.key = "sesame"
    with client_of(server, waits, api_key="sesame") as client:
        assert client.ask("", DATA) == "[1, 0]"
    with client_of(server, waits, api_key="wrong-sesame") as client, pytest.raises(ServerError) as error:
        client.ask("", DATA)
    assert "sesame" not in str(error.value)


def test_repeated_requests_count_against_the_budget(server, waits):
    server.script = [Answer(500), Answer(500)]
    with client_of(server, waits, budget=2) as client:
        with pytest.raises(BudgetSpentError):
            client.ask("", DATA)
        with pytest.raises(BudgetSpentError):
            client.ask("", DATA)
    assert len(server.requests) == 2


def test_nobody_waits_once_it_is_stopped(server):
    client = ChatClient(LabelServer(server.base_url, "m"))
    client.stop()
    with pytest.raises(StoppedError):
        client.ask("", DATA)


def test_no_server_and_wrong_addresses_are_said_in_one_line(waits):
    with pytest.raises(ValueError, match="is not an address; write it as http"):
        ChatClient(LabelServer("localhost:8080", "m"))
    nobody = LabelServer("http://127.0.0.1:9/v1", "m", retries=1)
    with (
        ChatClient(nobody, None, waits) as client,
        pytest.raises(ServerError, match="does not answer after 2 requests"),
    ):
        client.ask("", DATA)


def test_endless_answers_are_cut_off(server, waits):
    server.script = [Answer(200, json.dumps({"choices": [{"message": {"content": "x" * (5 * 2**20)}}]}))]
    with client_of(server, waits, retries=0) as client, pytest.raises(ServerError, match="more than 4,194,304 bytes"):
        client.ask("", DATA)
