"""litellm: chat, stream with usage, and text completions."""

import os
import sys
from importlib.metadata import version

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it waits for the network

import litellm

litellm.suppress_debug_info = True  # else a refusal prints an advertisement
URL, MODEL = sys.argv[1:3]
FIXED = {"api_base": f"{URL}/v1", "api_key": "none", "max_tokens": 12, "temperature": 0}


def main() -> None:
    messages = [{"role": "user", "content": "the quick brown fox"}]
    whole = litellm.completion(model=f"openai/{MODEL}", messages=messages, **FIXED)
    text = whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0
    chunks = list(
        litellm.completion(
            model=f"openai/{MODEL}",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **FIXED,
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    told = [c.usage for c in chunks if getattr(c, "usage", None)]
    assert told[-1].total_tokens == whole.usage.total_tokens
    plain = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="the quick", **FIXED)
    assert isinstance(plain.choices[0].text, str)
    try:
        litellm.completion(model=f"openai/{MODEL}", messages=messages, **{**FIXED, "temperature": -1})
    except litellm.BadRequestError:
        pass
    else:
        raise AssertionError("a bad temperature was answered")
    print(f"litellm {version('litellm')}: ok, chat, stream with usage, text completion, a bad field refused")


if __name__ == "__main__":
    main()
