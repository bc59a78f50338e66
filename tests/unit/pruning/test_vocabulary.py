"""A trimmed student: same tokens for the run's texts, same logits of speech, and any other text can be spelled."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from slimtts.data.manifest import write_utterances
from slimtts.data.markup import MARKS
from slimtts.decoding.generation import generate, spoken_bias, spoken_head
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams, load_params
from slimtts.pruning.surgery import remove_layers
from slimtts.pruning.vocabulary import needed_ids, pieces, prompted_ids, trim_rows, trim_tokenizer, trim_vocabulary
from slimtts.results import PrunePlan, SubsetReport
from slimtts.stages import distill_student as stage
from slimtts.teachers import loading, neutts
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.families import CHAT_TEMPLATE, TOKEN_KINDS
from slimtts.testing.tiny import tiny_model, tiny_utterances
from slimtts.workspace import Workspace

# As Llama 3 and Qwen 2.5 cut a text before their merges.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUM_CODES, PADDING = 21, 7
TEXTS = ["The weather there is rather good.", "“Whether they gather”, he says: 1234 days!", "Rather naïve…"]
CORPUS = [*TEXTS, "the other thing is a tiger, and gatherings of 2024 others", "another castle for seven mothers"] * 3
UNSEEN = ["zebra 🦓 quartz\n\t日本", "x", "The weathering of 12345 mothers is another's castle."]
GREEDY = DecodingParams(temperature=0, top_p=1, max_new_tokens=6, batch_rows=4, seed=1)
PARAMS = load_params(Path(__file__).parents[3] / "params.yaml")


def trained_core(ignore_merges):
    """A byte-level BPE like those of the published teachers, with some hundred merges."""
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


def family_tokenizer(name):
    kind = TOKEN_KINDS[name]
    core = trained_core(ignore_merges=name == "llasa")
    tokens = ["<|bos|>", "<|pad|>", "<|endoftext|>", *kind.markers, kind.end, *map(kind.code_token, range(NUM_CODES))]
    core.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", core.token_to_id("<|bos|>"))]),
        ]
    )
    named = {"bos_token": "<|bos|>", "eos_token": kind.end, "pad_token": "<|pad|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(params=[(name, tied) for name in TOKEN_KINDS for tied in (True, False)], ids=lambda p: f"{p[0]}-{p[1]}")
def published(request, monkeypatch):
    """A teacher of each family whose text tokens can be trimmed, its head tied or not; seven rows have no token."""
    name, tied = request.param
    monkeypatch.setattr(neutts, "phonemes", lambda text, _: text.lower())
    tokenizer, codec, family = family_tokenizer(name), SimpleNamespace(num_codes=NUM_CODES), loading.FAMILIES[name]()
    model = tiny_model(TOKEN_KINDS[name].body, 2, len(tokenizer) + PADDING, tied)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [tokenizer.bos_token_id, len(tokenizer) + 1]
    return Teacher(family, model, tokenizer, family.layout(tokenizer, codec), codec, Path(), "0" * 64)


def asked(texts):
    """Each text after each other one."""
    return [(text, Prompt(prompt, (1, 2, 3, 4, 5, 6, 7), "anna")) for text in texts for prompt in texts]


def trimmed(teacher, texts=TEXTS):
    prompts = [(text, Prompt(text, (1, 2, 3, 4, 5, 6, 7), "anna")) for text in texts]
    kept = needed_ids(teacher, prompted_ids(teacher, prompts))
    return trim_vocabulary(teacher.model, teacher, kept), kept


def tokens(system, text, prompt):
    return system.tokenizer.convert_ids_to_tokens(system.prompt_ids(text, prompt))


def test_texts_of_the_run_keep_their_tokens_and_speech_its_logits(published):
    student, kept = trimmed(published)
    assert len(kept) < len(published.tokenizer) - 30
    for text, prompt in [*asked(TEXTS), *((text, Prompt()) for text in TEXTS)]:
        assert tokens(student, text, prompt) == tokens(published, text, prompt)
        before, after = published.prompt_ids(text, prompt), student.prompt_ids(text, prompt)
        assert [kept[i] for i in after] == before
        with torch.inference_mode():
            h = published.model.model(input_ids=torch.tensor([before])).last_hidden_state
            h2 = student.model.model(input_ids=torch.tensor([after])).last_hidden_state
            assert torch.equal(h, h2)
            wanted = torch.nn.functional.linear(h, spoken_head(published.model, published.layout))
            assert torch.equal(torch.nn.functional.linear(h2, spoken_head(student.model, student.layout)), wanted)
    ours = generate(student.model, student.layout, [student.prompt_ids(*a) for a in asked(TEXTS)], GREEDY)
    theirs = generate(published.model, published.layout, [published.prompt_ids(*a) for a in asked(TEXTS)], GREEDY)
    assert ours == theirs and any(made.codes for made in ours)


def test_marks_of_the_family_are_read_as_before_though_no_text_held_one(published):
    student, _ = trimmed(published)
    for mark in MARKS.get(published.family.name, ()):
        for text in (mark, f"a {mark} a"):
            assert tokens(student, text, Prompt()) == tokens(published, text, Prompt())


def test_any_other_text_is_spelled_and_read_back(published):
    student, _ = trimmed(published)
    for text in UNSEEN:
        ids = student.tokenizer.encode(text, add_special_tokens=False)
        assert student.tokenizer.decode(ids) == text
    long = UNSEEN[2]
    assert len(student.tokenizer.encode(long)) > len(published.tokenizer.encode(long))


def test_the_saved_student_opens_strictly_as_a_standard_model(published, tmp_path, monkeypatch):
    student, kept = trimmed(published)
    stage.save_model(student.model, student, tmp_path)
    model = load_language_model(tmp_path)
    assert type(model) is type(published.model) is type(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(kept)
    assert model.config.tie_word_embeddings == published.model.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_vocab() == student.tokenizer.get_vocab()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(kept)))
    assert str(published.model.config.eos_token_id) != str(model.config.eos_token_id) == str(tokenizer.eos_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == student.layout.end_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == student.layout.pad_id
    assert model.generation_config.suppress_tokens == [tokenizer.bos_token_id]
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert tokenizer.chat_template == published.tokenizer.chat_template
    monkeypatch.setattr(type(published.family), "load_codec", lambda *_: published.codec)
    system = loading.load_beside(published, tmp_path)
    assert system.layout == student.layout
    codes = system.tokenizer.convert_ids_to_tokens(system.layout.to_ids(range(NUM_CODES)))
    assert codes == [TOKEN_KINDS[published.family.name].code_token(code) for code in range(NUM_CODES)]


def test_the_teacher_is_not_touched(published):
    before = {name: tensor.clone() for name, tensor in published.model.state_dict().items()}
    rows, definition = published.model.config.vocab_size, published.tokenizer.backend_tokenizer.to_str()
    trimmed(published)
    assert published.model.config.vocab_size == rows
    assert published.tokenizer.backend_tokenizer.to_str() == definition
    assert all(torch.equal(tensor, before[name]) for name, tensor in published.model.state_dict().items())


def test_pieces_are_those_of_the_actual_merges():
    rank = {("t", "h"): 0, ("a", "t"): 1, ("h", "e"): 2, ("th", "e"): 3, ("t", "he"): 4}
    assert pieces("the", rank) == {"the", "th"}
    assert pieces("athe", rank) == {"athe", "th", "the"}
    assert pieces("q", rank) == {"q"}


def test_a_tokenizer_of_qwens_class_stays_one(tmp_path):
    trained_core(False).model.save(str(tmp_path))
    tokenizer = Qwen2Tokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|speech_0|>", "<|speech_1|>"]})
    letters = {index for token, index in tokenizer.get_vocab().items() if len(token) == 1}
    kept = sorted(letters | set(tokenizer.get_added_vocab().values()))
    small = trim_tokenizer(tokenizer, kept)
    assert type(small) is Qwen2Tokenizer and len(small) == len(kept) < len(tokenizer)
    text = f"{TEXTS[1]}<|speech_1|>"
    assert small.decode(small.encode(text)) == text
    spelled = [[token] if token == "<|speech_1|>" else list(token) for token in tokenizer.tokenize(text)]
    assert small.tokenize(text) == [letter for token in spelled for letter in token]
    assert (small.eos_token, small.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


def test_an_untied_head_with_a_bias_is_cut_in_the_same_rows():
    model = tiny_model(num_layers=1, vocab_size=64, tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(64.0))

    class WithBias(type(model)):
        def __init__(self, config):
            super().__init__(config)
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=True)

    model.__class__ = WithBias
    kept = [1, 5, *range(40, 60)]
    small = trim_rows(model, kept)
    ids = torch.tensor([[1, 0, 20, 21]])
    with torch.inference_mode():
        full = model(input_ids=torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(small(input_ids=ids).logits, full, rtol=1e-6, atol=1e-6)
    assert torch.equal(small.lm_head.bias, model.lm_head.bias[kept])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_spoken_head_equals_the_whole_one_under_a_mask(teacher, tied, with_bias, seed):
    model, layout = tiny_model(num_layers=2, vocab_size=len(teacher.tokenizer), tied=tied, seed=seed), teacher.layout
    if with_bias:
        bias = torch.randn(len(teacher.tokenizer), generator=torch.Generator().manual_seed(seed))
        model.lm_head.bias = torch.nn.Parameter(bias)
    allowed = [*layout.to_ids(range(layout.num_codes)), layout.end_id]
    ids = torch.tensor([teacher.prompt_ids("the green tiger.", Prompt("anna.", (1, 2, 3)))])
    with torch.inference_mode():
        masked = model(input_ids=ids).logits
        masked[..., [i for i in range(masked.shape[-1]) if i not in set(allowed)]] = -torch.inf
        hidden = model.model(input_ids=ids).last_hidden_state
        sliced = torch.nn.functional.linear(hidden, spoken_head(model, layout), spoken_bias(model, layout))
    assert (spoken_bias(model, layout) is not None) == with_bias
    wanted = masked.log_softmax(-1)[..., allowed]
    torch.testing.assert_close(sliced.log_softmax(-1), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.tensor(allowed)[sliced.argmax(-1)], masked.argmax(-1))


def test_the_stage_keeps_what_its_texts_and_the_file_need(teacher, tmp_path):
    workspace = Workspace(tmp_path)
    workspace.data.mkdir()
    rows = tiny_utterances(12)
    write_utterances(workspace.data / "train.jsonl", rows[:4])
    write_utterances(workspace.data / "test.jsonl", rows[4:])
    knobs = PARAMS.distill_student.model_copy(update={"vocabulary": "trim"})
    assert stage.kept_rows(PARAMS.distill_student, teacher, workspace) is None
    kept = stage.kept_rows(knobs, teacher, workspace)
    student = trim_vocabulary(teacher.model, teacher, kept)
    for row in rows:
        prompt = Prompt(rows[0].text, rows[0].codes)
        assert tokens(student, row.text, prompt) == tokens(teacher, row.text, prompt)
    list_of_texts = tmp_path / "texts.txt"
    list_of_texts.write_text("anna\tthe yellow umbrella.\n\nmonday.\n")
    more = stage.kept_rows(knobs.model_copy(update={"vocabulary_texts": str(list_of_texts)}), teacher, workspace)
    assert set(kept) < set(more)
    student = trim_vocabulary(teacher.model, teacher, more)
    assert tokens(student, "the yellow umbrella.", Prompt()) == tokens(teacher, "the yellow umbrella.", Prompt())
    with pytest.raises(InvalidInputError, match=r"^distill_student.vocabulary_texts .*missing.txt"):
        stage.kept_rows(knobs.model_copy(update={"vocabulary_texts": "missing.txt"}), teacher, workspace)


def test_the_stage_trims_the_student_and_leaves_the_control(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_teacher", lambda _: replace(teacher, model=copy.deepcopy(teacher.model)))
    workspace = Workspace(tmp_path)
    workspace.data.mkdir()
    write_utterances(workspace.data / "train.jsonl", tiny_utterances(6))
    SubsetReport(
        strategy="random", teacher_hours=1, share=0.01, word_coverage=1, splits={}, dropped={}, data_sha256="d"
    ).write(workspace.data / "report.json")  # fmt: skip
    remove_layers(teacher.model, [0, 3]).save_pretrained(workspace.pruned / "model")
    PrunePlan(
        num_layers=4, retained=[0, 3], dropped=[1, 2], teacher_parameters=2, student_parameters=1, teacher_sha256="t"
    ).write(workspace.pruned / "plan.json")  # fmt: skip
    knobs = PARAMS.distill_student.model_copy(update={"vocabulary": "trim", "steps": 0, "device": "cpu"})
    stage.distill_student(PARAMS.model_copy(update={"distill_student": knobs}), workspace)
    student, control = (loading.load_beside(teacher, workspace.student / name) for name in ("student", "control"))
    assert student.model.config.vocab_size == len(student.tokenizer) < len(teacher.tokenizer)
    assert control.model.config.vocab_size == len(control.tokenizer) == len(teacher.tokenizer)
    asked_for = tiny_utterances(6)[0].text, Prompt("anna.", (1, 2, 3))
    pruned = load_language_model(workspace.pruned / "model").half().float()
    ours = generate(student.model, student.layout, [student.prompt_ids(*asked_for)], GREEDY)
    assert ours == generate(pruned, teacher.layout, [teacher.prompt_ids(*asked_for)], GREEDY)


def test_the_choice_does_not_throw_a_training_away():
    knobs = PARAMS.distill_student
    assert stage.fingerprint(knobs) == stage.fingerprint(knobs.model_copy(update={"vocabulary": "trim"}))
    assert stage.fingerprint(knobs) != stage.fingerprint(knobs.model_copy(update={"steps": 7}))


def word_level():
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


@pytest.mark.parametrize(
    ("change", "observed"),
    [
        (
            lambda t: {"layout": replace(t.layout, first_head_id=9)},
            "family nano, whose checkpoints must keep their rows",
        ),
        (lambda t: {"tokenizer": SimpleNamespace(is_fast=False)}, "a SimpleNamespace"),
        (lambda t: {"tokenizer": word_level()}, "a WordLevel tokenizer"),
    ],
)
def test_a_family_that_cannot_be_trimmed_is_refused_in_one_line(teacher, change, observed):
    with pytest.raises(InvalidInputError, match=rf"^distill_student.vocabulary: observed trim for {observed}.*keep$"):
        needed_ids(replace(teacher, **change(teacher)), [])
