"""A judge on loopback for smollm2-open.yaml: the classifier of smollm2_judges.py behind OpenAI's chat API.

    python examples/smollm2_judge_server.py models/smollm2-judges/judge --port 8123

It reads the prompt and the answer out of a request of the `judge` reward and replies ``{"score": S}``: the likeliest of
0, 0.5 and 1, or one drawn from the classifier's probabilities where the request's temperature is above 0. A large judge
reads the rubric; a model of 135 million parameters does not, so this one has learned it from examples.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SCORES = (0.0, 0.5, 1.0)
LONGEST = 256  # tokens


def read_by_judge(tokenizer: Any, prompt: str, answer: str, **options: Any) -> Any:
    """The form that the classifier reads, when it is trained and when it judges."""
    return tokenizer(f"{prompt}\n\n{answer}", truncation=True, max_length=LONGEST, **options)


def prompt_and_answer(messages: list[dict[str, str]]) -> tuple[str, str]:
    """The two framed parts of a request of the `judge` reward."""
    framed = messages[-1]["content"]
    mark = framed.split(maxsplit=1)[0]
    named = (part.partition("\n") for part in framed.split(mark)[1:])
    parts = {name.strip(): text.rstrip("\n") for name, _, text in named}
    return parts["PROMPT"].removeprefix("user: "), parts["ANSWER"]


class Judge:
    """The classifier; one request at a time."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self._lock = threading.Lock()

    @torch.inference_mode()
    def score(self, prompt: str, answer: str, temperature: float) -> float:
        """A score of ``SCORES``."""
        with self._lock:
            encoded = read_by_judge(self.tokenizer, prompt, answer, return_tensors="pt")
            logits = self.model(**encoded).logits[0]
            if temperature > 0:
                return SCORES[int(torch.multinomial((logits / temperature).softmax(-1), 1))]
            return SCORES[int(logits.argmax())]


def handler(judge: Judge) -> type[BaseHTTPRequestHandler]:
    """Answers ``POST .../chat/completions``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                request = json.loads(body)
                prompt, answer = prompt_and_answer(request["messages"])
                score = judge.score(prompt, answer, float(request.get("temperature") or 0.0))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                self._reply(400, {"error": {"message": f"no request of the judge reward: {error!r}"}})
                return
            message = {"role": "assistant", "content": f'{{"score": {score:g}}}'}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            kind = {"id": "judgement", "object": "chat.completion", "created": 0, "model": request.get("model", "")}
            self._reply(200, kind | {"choices": [choice]})

        def _reply(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing of single requests."""

    return Handler


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the classifier")
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    torch.set_num_threads(1)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), handler(Judge(options.model)))
    print(f"Judging at http://127.0.0.1:{options.port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
