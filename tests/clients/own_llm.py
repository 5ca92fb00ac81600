"""mixattn.evals.llm.OpenAI: completions, chats, streams, likelihoods, priority and client names."""

import asyncio
import sys

from mixattn.evals.llm import CallFailed, OpenAI

URL, MODEL = sys.argv[1:3]


async def check() -> None:
    user = [{"role": "user", "content": "the quick brown fox"}]
    async with OpenAI(f"{URL}/v1", MODEL) as model:
        fixed = {"max_tokens": 12, "client": "own", "priority": 3}
        plain = await model.complete("the quick", **fixed)
        assert plain.usage.prompt_tok > 0
        ids = await model.complete([9, 8, 7], **fixed)
        assert ids.usage.prompt_tok == 3
        whole = await model.complete_messages(user, **fixed)
        pieces = [piece async for piece in model.stream_messages(user, **fixed)]
        assert "".join(p.text for p in pieces) == whole.text
        assert pieces[-1].usage.output_tok == whole.usage.output_tok
        told = await model.likelihoods(user, ["yes", "naïve café"])
        assert all(one.log_probability < 0 for one in told), told
        try:
            await model.complete("x", max_tokens=10**6)
        except CallFailed as why:
            assert not why.transient
        else:
            raise AssertionError("a request beyond the longest was answered")
    print("mixattn.evals.llm.OpenAI: ok, completion of text and ids, chat, stream, likelihoods, refusal")


if __name__ == "__main__":
    asyncio.run(check())
