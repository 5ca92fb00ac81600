"""What transformers makes of the chat templates in `chat_cases`: python torch_chat.py FILE.json

Imports no package of ours. A case that raises is written as null.
"""

import json
import sys
from pathlib import Path

import chat_cases
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def main(path: Path) -> None:
    special = {name: text for name, text in chat_cases.SPECIAL.items() if text}
    vocabulary = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special)
    rendered = {}
    for name, template in chat_cases.TEMPLATES.items():
        rendered[name] = []
        for messages, options in chat_cases.CHATS:
            try:
                text = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, **options
                )
            except Exception:
                text = None
            rendered[name].append(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rendered, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    count = sum(text is not None for texts in rendered.values() for text in texts)
    print(f"{len(rendered)} templates, {count} renderings, written to {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
