"""What an application does with LiteLLM at one address. Runs in LiteLLM's own environment, and prints what it got.

`python ask_by_litellm.py http://127.0.0.1:8000`
"""

# mypy: ignore-errors

import json
import sys

import litellm

address = sys.argv[1]
litellm.telemetry = False
litellm.num_retries = 0
MESSAGES = [{"role": "user", "content": "hello"}]


def ask(model, **more):
    """A chat with a model of the address, by the form that LiteLLM calls `openai`."""
    return litellm.completion(
        model=f"openai/{model}", messages=MESSAGES, max_tokens=4, api_base=f"{address}/v1", api_key="none", **more
    )


got = {model: ask(model).model for model in ("tiny", "large", "gpt-4o", "huge")}
got["canary"] = [ask("canary").model for _ in range(20)]
got["stream"] = len(list(ask("gpt-4o", stream=True)))
claude = litellm.completion(
    model="anthropic/claude-here", messages=MESSAGES, max_tokens=4, api_base=address, api_key="none"
)
got["claude"] = claude.choices[0].message.content
try:
    ask("none")
except litellm.NotFoundError as error:
    got["unknown"] = str(error)
try:
    ask("x" * 10_000)
except litellm.NotFoundError as error:
    got["long"] = str(error)
print(json.dumps(got))
