"""langchain-openai: chat, stream with usage, completions, structured output."""

import sys
from importlib.metadata import version

from langchain_openai import ChatOpenAI, OpenAI

URL, MODEL = sys.argv[1:3]
FIXED = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "max_tokens": 48, "temperature": 0}
SCHEMA = {
    "title": "Answer",
    "description": "whether it is so",
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}


def main() -> None:
    chat = ChatOpenAI(stream_usage=True, max_retries=0, **FIXED)
    whole = chat.invoke("the quick brown fox")
    assert whole.usage_metadata["output_tokens"] > 0
    chunks = list(chat.stream("the quick brown fox"))
    assert "".join(c.text for c in chunks) == whole.text
    told = [c.usage_metadata for c in chunks if c.usage_metadata]
    assert sum(u["total_tokens"] for u in told) == whole.usage_metadata["total_tokens"]
    plain = OpenAI(max_retries=0, **FIXED).invoke("the quick")
    assert isinstance(plain, str)
    chat = ChatOpenAI(max_retries=0, **{**FIXED, "max_tokens": 512, "temperature": 1.0, "seed": 1})
    for method in ("json_schema", "function_calling"):
        made = chat.with_structured_output(SCHEMA, method=method).invoke("Is it so?")
        assert isinstance(made["sure"], bool), (method, made)
    print(
        f"langchain-openai {version('langchain-openai')}: ok, chat, stream with usage, completion, "
        "structured output by json_schema and by function calling"
    )


if __name__ == "__main__":
    main()
