import copy
import dataclasses
import json
from itertools import chain
from pathlib import Path

import pytest
import tiny_models
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from hf_instruct.data.sources import build_dataset
from hf_instruct.data.tokens import TokenCounter
from hf_instruct.errors import ConfigError, DataError
from hf_instruct.generation.answers import answer_examples
from hf_instruct.prompts import PromptFormat
from hf_instruct.records import Example
from hf_instruct.training.fast.collators import IGNORED
from hf_instruct.training.sft import tokenize_examples

PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\nFix the spelling."
)
WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\nFix the spelling."
)
END = tiny_models.END

EXAMPLES = [
    Example("a", "Fix the spelling.", "freind", "friend"),
    Example("b", "Name a color.", "", "Red."),
    Example("c", "Write a poem.", "", "\n\nRoses are red,\n"),
    Example("d", "Repeat.", "x ", " leading space"),
    Example("e", "Übersetze ins Englische: Straße", "\n", "street \N{ROCKET}"),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_gpt2: Path):
    return tiny_models.load_copy(tiny_gpt2)[1]


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer):
    return with_chat(copy.deepcopy(tokenizer))


def with_chat(tokenizer, template: str = tiny_models.CHAT_TEMPLATE, tokens=("<|im_start|>", "<|im_end|>")):
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("name", "input", "text"),
    [
        ("alpaca", "", PREAMBLE + "\n\n### Response:\n"),
        ("alpaca", "freind", PREAMBLE + "\n\n### Input:\nfreind\n\n### Response:\n"),
        ("alpaca-stanford", "", PREAMBLE + "\n\n### Response:\n"),
        ("alpaca-stanford", "freind", WITH_CONTEXT + "\n\n### Input:\nfreind\n\n### Response:\n"),
        ("phi3", "", "<|user|>\nFix the spelling.\n<|assistant|>\n"),
        ("phi3", "freind", "<|user|>\nFix the spelling.\nfreind\n<|assistant|>\n"),
    ],
)
def test_golden_texts(name: str, input: str, text: str) -> None:
    assert PromptFormat.from_name(name).format_prompt("Fix the spelling.", input) == text


def test_texts_are_not_read_as_templates_or_escaped() -> None:
    text = PromptFormat.from_name("phi3").format_prompt("{{ 7 * 7 }} & <b>", "{% if %} \"'")
    assert text == "<|user|>\n{{ 7 * 7 }} & <b>\n{% if %} \"'\n<|assistant|>\n"


def test_completion_is_the_output_and_one_end(tokenizer) -> None:
    for name in ("alpaca", "alpaca-stanford", "phi3"):
        prompt_format = PromptFormat.from_name(name)
        completion = prompt_format.encode_example(tokenizer, Example("a", "A color?", "", "Red."))[1]
        assert tokenizer.decode(completion) == "Red.<|endoftext|>"
        assert prompt_format.end_token_id(tokenizer) == END


def test_jinja_file(tmp_path: Path) -> None:
    path = tmp_path / "format.jinja"
    path.write_text("Q: {{ instruction }}{% if input %} ({{ input }}){% endif %}\nA: \n", encoding="utf-8")
    prompt_format = PromptFormat.from_name(path)
    assert prompt_format == PromptFormat.from_name(str(path))
    assert prompt_format.name == str(path)
    assert prompt_format.format_prompt("What?", "this") == "Q: What? (this)\nA: \n"
    assert prompt_format.format_prompt("What?") == "Q: What?\nA: \n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{{ instruction }}\n", "never uses `input`"),
        (b"Say something.\n", "never uses `instruction` and `input`"),
        (b"{{ instruction } {{ input }}", "is not a usable Jinja template"),
        (b"{{ instruction }} {{ inputs }}", "'inputs' is undefined"),
        (b"{{ instruction }} {{ input }} caf\xe9", "Jinja file"),
        (b"{{ instruction.__class__.__mro__ }}{{ input }}", "access to attribute"),
        (b"{{ instruction }}{{ input + 1 }}", "is not a usable Jinja template"),
        (b"{{ instruction }}{{ input or nothing }}", "'nothing' is undefined"),
    ],
)
def test_problems_of_a_jinja_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "format.jinja"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        PromptFormat.from_name(str(path))
    assert f"rompt format `{path}`" in str(caught.value)
    assert problem in str(caught.value)


def test_a_user_template_is_checked_like_a_file() -> None:
    PromptFormat("mine", "q: {{ instruction | lower }} {{ input | lower }}\nA:")
    with pytest.raises(ConfigError, match="The prompt format `mine` never uses `input`"):
        PromptFormat("mine", "Q: {{ instruction }}\nA:")


def test_unknown_format_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean `alpaca`.* Choose from `alpaca`, `alpaca-stanford`, `phi3`"):
        PromptFormat.from_name("alpacca")
    for name in (tmp_path, "Answer. {{ instruction }} {{ input }} " * 30, "a\0b"):
        with pytest.raises(ConfigError, match="Unknown prompt format"):
            PromptFormat.from_name(name)


def test_chat_uses_the_tokenizers_template(chat_tokenizer) -> None:
    prompt_format = PromptFormat.from_name("chat")
    text = prompt_format.format_prompt("Fix the spelling.", "freind", tokenizer=chat_tokenizer)
    assert text == "<|im_start|>user\nFix the spelling.\nfreind<|im_end|>\n<|im_start|>assistant\n"
    completion = prompt_format.encode_example(chat_tokenizer, Example("a", "Fix.", "", "friend"))[1]
    assert chat_tokenizer.decode(completion) == "friend<|im_end|>"
    assert prompt_format.end_token_id(chat_tokenizer) == chat_tokenizer.convert_tokens_to_ids("<|im_end|>") == END + 2


@pytest.mark.parametrize(
    ("after", "end"),
    [
        ("<|end|>\n", "<|end|>"),
        (" <|end|>", "<|end|>"),
        ("<|endoftext|>", "<|endoftext|>"),
        # As Phi-3's own: the end of turn, then end-of-text after the last message.
        ("<|end|>\n<|endoftext|>", "<|end|>"),
        ("\n", "<|endoftext|>"),
        ("\nbye", "<|endoftext|>"),
    ],
)
def test_chat_ends_with_the_templates_end_of_turn(tokenizer, after: str, end: str) -> None:
    messages = "{% for message in messages %}{{ message.content }}{% endfor %}"
    template = messages + "{% if not add_generation_prompt %}" + after + "{% endif %}"
    tokenizer = with_chat(copy.deepcopy(tokenizer), template, ["<|end|>"])
    assert PromptFormat.from_name("chat").end_token(tokenizer) == end


def test_requirements_of_chat_and_end_tokens(tiny_gpt2: Path, tokenizer) -> None:
    prompt_format = PromptFormat.from_name("chat")
    with pytest.raises(ConfigError, match="no tokenizer given"):
        prompt_format.format_prompt("Hello")
    with pytest.raises(ConfigError, match=r"`.*tiny-gpt2` has none"):
        prompt_format.encode_prompt(tokenizer, "Hello")
    broken = with_chat(copy.deepcopy(tokenizer), "{% for %}", [])
    with pytest.raises(ConfigError, match=r"The chat template of `.*tiny-gpt2` refuses this: Expected an expression"):
        prompt_format.encode_prompt(broken, "Hello")
    endless = tiny_models.AutoTokenizer.from_pretrained(tiny_gpt2)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        PromptFormat.from_name("alpaca").end_token(endless)


class CapturedModel:
    """Stands in front of a model and keeps the prompts that `generate` is called with."""

    def __init__(self, model) -> None:
        self.model = model
        self.prompts: list[list[int]] = []

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def generate(self, *, input_ids, attention_mask, **settings):
        rows = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
        self.prompts += [[id for id, mask in zip(*row, strict=True) if mask] for row in rows]
        return self.model.generate(input_ids=input_ids, attention_mask=attention_mask, **settings)


@pytest.mark.parametrize("name", ["alpaca", "alpaca-stanford", "phi3", "chat", "jinja"])
def test_all_paths_see_the_same_token_ids(tiny_gpt2: Path, tmp_path: Path, name: str) -> None:
    """Promise 1: training, samples while training and answers condition on the same ids."""
    from hf_instruct.training.callbacks import build_sampler

    if name == "jinja":
        (tmp_path / "f.jinja").write_text("{{ instruction }}|{{ input }}|Answer: ")  # ends in a space that could merge
    prompt_format = PromptFormat.from_name(str(tmp_path / "f.jinja") if name == "jinja" else name)
    model, tokenizer = tiny_models.load_copy(tiny_gpt2)
    if name == "chat":
        tokenizer = with_chat(copy.deepcopy(tokenizer))
        model.resize_token_embeddings(len(tokenizer))
    end = prompt_format.end_token_id(tokenizer)

    answering, sampling = CapturedModel(model), CapturedModel(model)
    answer_examples(answering, tokenizer, EXAMPLES, prompt_format=prompt_format, batch_size=1, max_new_tokens=1)
    build_sampler(sampling, tokenizer, EXAMPLES, prompt_format)()
    longest_first = sorted(range(len(EXAMPLES)), key=lambda index: -len(sampling.prompts[index]))
    assert answering.prompts == [sampling.prompts[index] for index in longest_first]

    rows = tokenize_examples(EXAMPLES, tokenizer, prompt_format, max_length=None)
    for example, row, prompt in zip(EXAMPLES, rows, sampling.prompts, strict=True):
        text = prompt_format.format_prompt(example.instruction, example.input, tokenizer=tokenizer)
        assert prompt == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: len(prompt)] == prompt
        completion = row["input_ids"][len(prompt) :]
        assert row["labels"] == [IGNORED] * len(prompt) + completion
        assert tokenizer.decode(completion[:-1]) == example.output
        assert completion[-1] == end
        assert completion.count(end) == 1


@pytest.mark.parametrize("output", ["x", "\nx", " x", "\n\n\nx", "  "])
def test_outputs_do_not_change_prompt_ids(tokenizer, output: str) -> None:
    prompt_format = PromptFormat.from_name("alpaca")
    prompt_ids, completion_ids = prompt_format.encode_example(tokenizer, Example("a", "Go.", "", output))
    assert prompt_ids == prompt_format.encode_prompt(tokenizer, "Go.")
    assert tokenizer.decode(completion_ids) == output + "<|endoftext|>"


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(tiny_gpt2: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    from hf_instruct.models import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_gpt2))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", begin), ("<|endoftext|>", END)]
    )
    prompt, completion = PromptFormat.from_name("phi3").encode_example(tokenizer, Example("a", "Go.", "", "Gone."))
    assert (prompt[0], prompt[-1]) == (begin, tokenizer("\n", add_special_tokens=False)["input_ids"][-1])
    assert completion.count(END) == 1
    assert begin not in completion


@pytest.mark.slow
def test_a_run_keeps_the_prompt_format_it_started_with(tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    """Promise 1 over the stages: one template, with its date and switch, from the data to the export."""
    from hf_instruct import pipeline
    from hf_instruct.generation import stage
    from hf_instruct.generation.chat_model import ChatModel
    from hf_instruct.hub.merging import write_model

    base = str(tmp_path / "base")
    model, tokenizer = tiny_models.load_copy(tiny_llama)
    # A clock that never shows the same time twice, and a switch as Qwen3's.
    template = "{{ strftime_now('%S.%f') }}\n" + tiny_models.CHAT_TEMPLATE.replace(
        "{{ message.content }}",
        "{{ '<think></think>' if message.role == 'assistant' else '' }}{{ message.content }}",
    )
    template += "{{ '<think></think>' if add_generation_prompt and enable_thinking is defined else '' }}"
    tokenizer = with_chat(copy.deepcopy(tokenizer), template)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [{"instruction": e.instruction, "output": e.output} for e in tiny_models.tiny_examples(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    answered, generate = [], stage.answer_examples

    def keep_prompt(model, tokenizer, examples, *, prompt_format, **options):
        answered.append(prompt_format.encode_prompt(tokenizer, "Go."))
        return generate(model, tokenizer, examples, prompt_format=prompt_format, **options)

    monkeypatch.setattr(stage, "answer_examples", keep_prompt)
    experiment = {
        "data": {"source": str(tmp_path / "rows.json"), "prompt_format": "chat"},
        "model": {"name": base},
        "train": tiny_models.TINY_SETTINGS,
        "generate": {"max_new_tokens": 2},
    }
    run = pipeline.run(experiment, tmp_path / "run", stages=("data", "train", "generate"))
    prompt_format = run.load_prompt_format("chat")
    text = prompt_format.format_prompt("Go.", tokenizer=tokenizer)
    assert text.endswith("Go.<|im_end|>\n<|im_start|>assistant\n<think></think>")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert answered == [ids, ids]
    assert [ChatModel.load(str(run.path), base=is_base).encode("Go.") for is_base in (True, False)] == [ids, ids]
    message = [{"role": "user", "content": "Go."}]
    for saved in (AutoTokenizer.from_pretrained(run.model), write_model(run, tmp_path / "out")):
        assert saved.apply_chat_template(message, add_generation_prompt=True)["input_ids"] == ids


SPECIAL = Example(
    "s", "Say <|endoftext|> and <|im_end|>.", "<|im_start|>system\n", "First. <|endoftext|> Then <|im_end|>."
)


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_special_tokens_in_texts_are_plain_text(chat_tokenizer, name: str) -> None:
    prompt_format = PromptFormat.from_name(name)
    prompt, completion = prompt_format.encode_example(chat_tokenizer, SPECIAL)
    special = {END, *chat_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])}
    plain = prompt_format.encode_prompt(chat_tokenizer, "Say it.")
    # Those of the template, and the one end of the answer.
    assert [id for id in prompt if id in special] == [id for id in plain if id in special]
    assert [id for id in completion if id in special] == [prompt_format.end_token_id(chat_tokenizer)]
    assert chat_tokenizer.decode(completion[:-1]) == SPECIAL.output
    text = prompt_format.format_prompt(SPECIAL.instruction, SPECIAL.input, tokenizer=chat_tokenizer)
    assert chat_tokenizer.decode(prompt) == text
    assert prompt_format.find_special_tokens(chat_tokenizer, SPECIAL.output) == ["<|endoftext|>", "<|im_end|>"]


def test_special_tokens_in_a_conversation_are_plain_text(chat_tokenizer) -> None:
    prompt_format, end = PromptFormat.from_name("chat"), chat_tokenizer.convert_tokens_to_ids("<|im_end|>")
    turns = [("One <|im_end|>?", "Two <|im_end|>.")]
    ids = prompt_format.encode_turns(chat_tokenizer, "Three <|im_end|>?", history=turns, system="Be <|im_end|> brief.")
    assert ids.count(end) == 4
    assert chat_tokenizer.decode(ids).count("<|im_end|>") == 8


def test_special_tokens_and_the_space_that_sentencepiece_puts_first() -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"AQTehnst.:</>\n", "he", "▁T"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("h", "e"), ("▁", "T")], add_bos_token=True)
    prompt_format = PromptFormat("mine", "Q: {{ instruction }}{{ input }}\nA:")
    prompt, completion = prompt_format.encode_example(tokenizer, Example("a", "The</s> s.", "", "The </s> s.</s>"))
    assert (prompt[0], completion[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in [*prompt, *completion[:-1]]
    assert tokenizer.decode(prompt[1:]) == "Q: The</s> s.\nA:"
    assert tokenizer.decode(completion[:-1]) == "The </s> s.</s>"
    assert prompt_format.encode_prompt(tokenizer, "The") == tokenizer("Q: The\nA:")["input_ids"]


def test_a_row_whose_special_token_cannot_be_plain_text_is_named() -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>")
    with pytest.raises(DataError, match=r"^Example `e7`: A text contains a special token that the tokenizer .*<end>"):
        PromptFormat.from_name("alpaca").encode_example(tokenizer, Example("e7", "Go.", "", "a <end>"))
    with pytest.raises(DataError, match=r"^Example `e7`: "):
        PromptFormat.from_name("alpaca").encode_prompts(tokenizer, [Example("e7", "Go <end> .", "", "a")])


def test_a_format_that_fails_on_one_row_names_it(chat_tokenizer) -> None:
    prompt_format = PromptFormat("mine", "{{ 'many' * (9 // instruction|length) }} {{ instruction }} {{ input }} ->")
    with pytest.raises(DataError, match=r"^Example `b`: The prompt format `mine` is not .* division or modulo by zero"):
        prompt_format.encode_prompts(chat_tokenizer, [EXAMPLES[0], Example("b", "", "", "x")])
    deep = copy.deepcopy(chat_tokenizer)
    deep.chat_template = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() if 'deep' in messages[0].content }}A"
    with pytest.raises(DataError, match=r"^Example `d`: The chat template of .* refuses this: it is nested too deeply"):
        PromptFormat.from_name("chat").encode_prompts(deep, [EXAMPLES[0], Example("d", "Go deep.", "", "x")])


def test_conversations_and_plain_prompts_are_encoded_unchanged(chat_tokenizer, tokenizer) -> None:
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"id": "1", "instruction": "c", "input": "", "output": "d", "messages": messages}
    chat = PromptFormat.from_name("chat")
    prompt_ids, completion_ids = chat.encode_example(chat_tokenizer, row)
    text = chat.render_chat(chat_tokenizer, messages, add_generation_prompt=False)
    assert chat_tokenizer.decode(prompt_ids + completion_ids) == text.rstrip("\n")
    assert chat.encode_prompts(chat_tokenizer, [Example(**row)]) == [prompt_ids]
    with pytest.raises(DataError, match="Example `1`: The prompt format `alpaca` does not support earlier turns"):
        PromptFormat.from_name("alpaca").encode_example(tokenizer, row)
    own = Example("2", "Q: a\nA:", "", " b", prompt="Q: a\nA:")
    prompt_ids, completion_ids = PromptFormat.from_name("alpaca").encode_example(tokenizer, own)
    assert (tokenizer.decode(prompt_ids), tokenizer.decode(completion_ids)) == ("Q: a\nA:", " b<|endoftext|>")


TURNS = [
    ("user", "Add 1."),
    ("assistant", "\n\nIt's 2, ééé"),
    ("user", "And 1."),
    ("assistant", "3"),
    ("user", "Stop."),
]
TALK = [{"role": role, "content": text} for role, text in [("system", "Brief."), *TURNS, ("assistant", "Bye ")]]


@pytest.mark.parametrize("said", ["ééé", "<|im_end|> éé"])
def test_loss_on_all_answers_of_a_conversation_or_the_last(chat_tokenizer, said: str, monkeypatch) -> None:
    chat = PromptFormat.from_name("chat")
    talk = [{**turn, "content": turn["content"].replace("ééé", said)} for turn in TALK]
    example = Example("1", "Stop.", "", "Bye ", messages=talk)
    (pieces,) = chat.encode_examples(chat_tokenizer, [example])
    assert [chat_tokenizer.decode(piece) for piece in pieces[1::2]] == [
        # A token over the line between prompt and answer is the answer's, as in TRL.
        f"\n\n\nIt's 2, {said}<|im_end|>",
        "3<|im_end|>",
        "Bye <|im_end|>",
    ]
    text = chat.render_chat(chat_tokenizer, talk, add_generation_prompt=False)
    assert chat_tokenizer.decode([*chain(*pieces)]) == text.rstrip("\n")
    end = chat.end_token_id(chat_tokenizer)
    # What a user writes ends nothing.
    assert [piece.count(end) for piece in pieces] == [2, 1, 1, 1, 1, 1]
    assert chat.encode_examples(chat_tokenizer, [example], loss_on="last") == [
        chat.encode_example(chat_tokenizer, example)
    ]
    # Of a row with a prompt and a completion, the completion is learned.
    (later,) = chat.encode_examples(chat_tokenizer, [dataclasses.replace(example, prompt_turns=4)])
    assert later == [[*chain(*pieces[:3])], *pieces[3:]]
    counter = TokenCounter("m", chat_tokenizer, prompt_format=chat, max_length=None)
    (counts,) = counter.add_counts(build_dataset([example], Example))
    assert counts["num_labels"] == sum(map(len, pieces[1::2]))
    assert counts["special_tokens"] == (["<|im_end|>"] if said.startswith("<") else [])
    # A tokenizer that cannot say where its tokens stand gives the same.
    monkeypatch.setattr(type(chat_tokenizer), "is_fast", False)
    assert chat.encode_examples(chat_tokenizer, [example]) == [pieces]


@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_a_template_without_system_messages_is_refused(chat_tokenizer, loss_on) -> None:
    users = "{% for message in messages if message.role != 'system' %}"
    chat = PromptFormat("chat", tiny_models.CHAT_TEMPLATE.replace("{% for message in messages %}", users))
    example = Example("1", "Go.", "", "Bye ", messages=TALK)
    with pytest.raises(DataError, match=r"^Example `1`: The chat template of .* does not support a system message"):
        chat.encode_examples(chat_tokenizer, [example], loss_on=loss_on)


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_batch_encoding_equals_single_encoding(chat_tokenizer, name: str) -> None:
    messages = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    examples = [
        Example("1", "Name a color.", "", "Red."),
        Example("2", "Say <|endoftext|>.", "x", "<|im_end|>"),
        Example("3", "c", "", "d", messages=messages),
        Example("4", "Q: a\nA:", "", " b", prompt="Q: a\nA:"),
        Example("5", "Add.", "1 2", "3"),
    ]
    prompt_format = PromptFormat.from_name(name)
    alone = [prompt_format.encode_example(chat_tokenizer, example) for example in examples]
    assert prompt_format.encode_examples(chat_tokenizer, examples) == alone
