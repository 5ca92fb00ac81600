"""The chat as a user meets it: piped input, a small model, and the real one where it is there."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from flax import nnx

from mixattn import ModelConfig, Transformer, generate, hf
from serving.chat.session import ChatSession, MessageTooLong
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.offline.chat_lines import renderer
from serving.request import Sampling

REAL = Path(__file__).resolve().parents[3] / "models" / "smollm2"
real = pytest.mark.skipif(
    not (REAL / "config.json").exists(), reason="models/smollm2 is missing (make model)"
)
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}w1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    words = {f"w{i}": i for i in range(64)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    config = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32, vocab_size=64)
    model = Transformer(config, rngs=nnx.Rngs(0))
    hf.save(model, path, tokenizer, tokenizer_config={"chat_template": TEMPLATE})
    return path


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    limits = Limits(chunk_tok=16, decode_steps=(2, 1))
    config = EngineConfig(
        max_slots=1, max_request_tok=48, limits=limits, chunk_sizes=(16,), prefill_rows=(1,)
    )
    return Engine(hf.load(folder)[0], config, decode=hf.load_tokenizer(folder).decode)


def session(folder, engine, **fields) -> ChatSession:
    return ChatSession(engine, renderer(folder, hf.load_tokenizer(folder)), Sampling(max_tokens=8), **fields)


def test_answers_are_what_the_model_says_to_the_whole_conversation(folder, engine):
    chat, tokenizer = session(folder, engine), hf.load_tokenizer(folder)
    model, said = hf.load(folder)[0], []
    for text in ("w5 w6", "w7"):
        said += [text]
        [want] = generate(model, [tokenizer.encode(" ".join([*said, "w1"])).ids], max_new_tokens=8)
        said += ["".join(chat.ask(text))]
        assert said[-1] == " " + tokenizer.decode(want)  # as it continues the prompt
    assert [m["content"] for m in chat.history] == said
    assert chat.tok_per_s > 0


def test_a_stopped_answer_is_kept_and_the_next_one_works(folder, engine):
    chat = session(folder, engine)
    pieces = chat.ask("w5")
    first = next(pieces)
    pieces.close()
    assert not engine.live
    assert chat.history == [{"role": "user", "content": "w5"}, {"role": "assistant", "content": first}]
    assert "".join(chat.ask("w6"))


def test_old_turns_are_forgotten_but_not_the_system_message(folder, engine):
    chat = session(folder, engine, history=[{"role": "system", "content": "w9"}])
    for _ in range(6):
        "".join(chat.ask("w5 w5 w5"))
    assert chat.forgotten > 0
    assert chat.history[0]["content"] == "w9"
    before = list(chat.history)
    with pytest.raises(MessageTooLong, match="there is room for 40"):
        next(chat.ask("w5 " * 60))
    assert chat.history == before


def test_piped_lines_are_answered(folder, tmp_path):
    import subprocess

    from tests import forked

    command = ["serving.chat", f"--model={folder}", "--max_model_len=64", "--max_tokens=4"]
    lines = "w5\n\n/help\n/reset\n/nonsense\nw6\n/quit\nnot read\n"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with forked.Process(*command, text=True, **pipes) as done:
        out, err = done.communicate(lines, timeout=300)
    assert done.returncode == 0, err
    assert out.count("tokens/s]") == 2
    assert "/nonsense is not a command" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "--model is missing"),
        (["--model={empty}"], "holds no model; `make model` fetches one"),
        (["--model={model}", "--max_tokens=64", "--max_model_len=64"], "leaves no room"),
        (["--model={bare}"], "has no chat template"),
    ],
)
def test_mistakes_are_one_sentence(args, sentence, folder, tmp_path, run_module):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer_config.json").unlink()
    (bare / "chat_template.jinja").unlink()
    done = run_module("serving.chat", *(a.format(empty=tmp_path, model=folder, bare=bare) for a in args))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_is_served_without_a_config(folder, tmp_path, run_module):
    lines = [
        {"prompt": "w1 w2", "max_tokens": 3},
        {"prompt_ids": [3, 4], "max_tokens": 3},
        {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 3},
        {"custom_id": "b", "body": {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 3}},
    ]
    (tmp_path / "asks").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = [f"--model={folder}", f"--requests={tmp_path}/asks", f"--out={tmp_path}/out", "--policy=vtc"]
    done = run_module("serving.main", *args)
    assert done.returncode == 0, done.stderr
    assert "K/V may take up to" in done.stderr
    answers = {a["id"]: a for a in map(json.loads, (tmp_path / "out").read_text().splitlines())}
    [want] = generate(hf.load(folder)[0], [[5, 1]], max_new_tokens=3)
    assert answers["3"]["output_ids"] == answers["b"]["output_ids"] == want
    assert len(answers) == 4
    wrong = run_module("serving.main", *args, "--kv_memory=lots")
    assert (wrong.returncode, "'lots' is not a size" in wrong.stderr) == (2, True)


@real
@pytest.mark.model
@pytest.mark.long  # CI asks the command itself
def test_the_real_model_knows_paris():
    model, tokenizer = hf.load(REAL)[0], hf.load_tokenizer(REAL)
    ids = renderer(REAL, tokenizer)([{"role": "user", "content": "What is the capital of France?"}])
    [answer] = generate(model, [ids], max_new_tokens=12, stop_ids=hf.stop_ids(REAL))
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] in hf.stop_ids(REAL)
