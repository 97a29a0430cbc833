"""Asks a server by a client that lives in another environment: `python other_clients.py CLIENT URL < REQUESTS`.

Reads a JSON list of texts, writes a JSON object of answers. Imports nothing of glider.
"""

import json
import os
import sys
from typing import Any

SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
STEERING = {"glider": {"experts": ["e2"]}}


def langchain(url: str, texts: list[str]) -> dict[str, Any]:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

    where: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model="tiny", **where, **SETTINGS)
    steered = ChatOpenAI(model="tiny", extra_body=STEERING, **where, **SETTINGS)
    turns = [HumanMessage(texts[0]), AIMessage("Yes."), HumanMessage(texts[1])]
    chunks = list(chat.stream(texts[0]))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    embedder = OpenAIEmbeddings(model="tiny", check_embedding_ctx_length=False, **where)
    return {
        "chat": [message.content for message in chat.batch(texts)],
        "streamed": whole.content,
        "usage": chat.invoke(texts[0]).usage_metadata["output_tokens"],
        "logprobs": len(chat.bind(logprobs=True).invoke(texts[0]).response_metadata["logprobs"]["content"]),
        "turns": chat.invoke(turns).content,
        "steered": steered.invoke(texts[0]).content,
        "responses": ChatOpenAI(model="tiny", use_responses_api=True, **where, **SETTINGS).invoke(texts[0]).text,
        "completion": OpenAI(model="tiny", top_p=1, **where, **SETTINGS).invoke(texts[0]),
        "embedded": len(embedder.embed_query(texts[0])),
        "fault": _fault(lambda: ChatOpenAI(model="nobody", **where).invoke(texts[0])),
    }


def litellm(url: str, texts: list[str]) -> dict[str, Any]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
    import litellm

    litellm.telemetry = False
    where: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}

    def chat(messages: Any, **more: Any) -> Any:
        turns = messages if isinstance(messages, list) else [{"role": "user", "content": messages}]
        return litellm.completion(**{"model": "openai/tiny", "messages": turns, **where, **SETTINGS, **more})

    turns = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": "Yes."}]
    answers = [chat(text) for text in texts]
    text = litellm.text_completion(model="text-completion-openai/tiny", prompt=texts[0], **where, **SETTINGS)
    embedded = litellm.embedding(model="openai/tiny", input=[texts[0]], encoding_format="float", **where)
    logprobs = chat(texts[0], logprobs=True).choices[0].logprobs
    return {
        "chat": [answer.choices[0].message.content for answer in answers],
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chat(texts[0], stream=True)),
        "usage": answers[0].usage.completion_tokens,
        "logprobs": len((logprobs if isinstance(logprobs, dict) else logprobs.model_dump())["content"]),
        "turns": chat([*turns, {"role": "user", "content": texts[1]}]).choices[0].message.content,
        "steered": chat(texts[0], extra_body=STEERING).choices[0].message.content,
        "responses": litellm.responses(
            model="openai/tiny", input=texts[0], temperature=0, max_output_tokens=16, **where
        ).output[0].content[0].text,
        "completion": text.choices[0].text,
        "embedded": len(embedded.data[0]["embedding"]),
        "fault": _fault(lambda: chat(texts[0], model="openai/nobody")),
    }  # fmt: skip


def _fault(call: Any) -> str:
    try:
        call()
    except Exception as fault:
        return f"{getattr(fault, 'status_code', None)} {fault}"
    return "none"


if __name__ == "__main__":
    client = {"langchain": langchain, "litellm": litellm}[sys.argv[1]]
    print(json.dumps(client(sys.argv[2], json.load(sys.stdin))))
