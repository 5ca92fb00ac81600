"""Chat templates: what they may do, and how little time, memory and text they get for it."""

import asyncio
import os
import resource
import time

import pytest

from mixattn.chat_template import special_tokens
from serving.http.errors import ApiError
from serving.http.settings import HttpLimits
from serving.http.templates import PLAIN_TEMPLATE, ChatTemplate, template_of

HELLO = [{"role": "user", "content": "hi {{ 7*7 }}"}]
LIMITS = HttpLimits(template_s=1.0, template_chars=10_000)


def rendered(template, messages=HELLO, **variables):
    async def ask():
        return await template.render(messages, variables)

    return asyncio.run(ask())


@pytest.fixture
def made():
    templates = []

    def one(source, **variables):
        templates.append(ChatTemplate(source, variables, LIMITS))
        return templates[-1]

    yield one
    for template in templates:
        template.close()


def test_messages_are_data_and_the_plain_template_writes_lines(made):
    assert rendered(made(None)) == "user: hi {{ 7*7 }}\nassistant:"
    assert made(None).plain
    assert made(PLAIN_TEMPLATE).knows_tools is False


def test_a_template_finds_what_hugging_faces_expects(made):
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ m.content | tojson }}{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}{{ strftime_now('%Y') | length }}{{ extra }}"
    )
    messages = [{"role": "user", "content": "é"}] * 3
    text = rendered(made(source, bos_token="<s>"), messages, tools=[{"a": 1}], extra="!")
    assert text == '<s>"é"[{"a": 1}]4!'


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system messages') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 1 / 0 }}",
        "{% include '/etc/passwd' %}",
        "{{ nothing.here.at_all }}",
        "{% for x in range(10000000) %}{% endfor %}",
        "{{ 'a' * 20000 }}",
        "{% for i in range(9000) %}{{ 'aa' }}{% endfor %}",
        "{{ 'a' * 3000000000 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{",
    ],
)
def test_what_a_template_may_not_is_a_400_soon(made, source):
    template = made(source)
    began_s = time.monotonic()
    with pytest.raises(ApiError) as refused:
        rendered(template)
    assert refused.value.status == 400
    assert time.monotonic() - began_s < 20  # of which one second is the template's
    template.source = "{{ messages[0].role }}"
    assert rendered(template) == "user"  # a process that was killed is replaced


def test_a_template_is_rendered_beside_a_thousand_open_connections(made):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    held = []
    try:
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        assert rendered(made("{{ messages[0].role }}")) == "user"
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_template_and_its_tokens_are_read_from_the_tokenizers_settings():
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert template_of({"chat_template": "x"}) == "x"
    assert template_of({"chat_template": named}) == "d"
    assert template_of({}) is None
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "other": 1}
    assert special_tokens(settings) == {"bos_token": "<s>", "eos_token": "</s>"}
