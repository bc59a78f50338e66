"""Each family on a tiny body of its own kind: open, label, speak, prune, save, open again."""

import pytest
import torch

from slimtts.data.manifest import Utterance
from slimtts.decoding.generation import generate
from slimtts.decoding.teacher_forcing import NO_TARGET, collate, forced_sequence
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams, TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.stages.distill_student import save_model
from slimtts.teachers import loading, neutts
from slimtts.teachers.base import Prompt
from slimtts.testing.families import TOKEN_KINDS, write_teacher_folder

NUM_CODES, PADDING = 21, 7
UTTERANCE = Utterance("u", "so it is.", "anna", (3, 20, 0, 7), 0.08)
PROMPT = Prompt("yes.", (1, 2, 3, 4, 5, 6, 7), "anna")
GREEDY = DecodingParams(temperature=0, top_p=1, max_new_tokens=6, batch_rows=4, seed=1)


@pytest.fixture(params=[(name, tied) for name in TOKEN_KINDS for tied in (True, False)], ids=lambda p: f"{p[0]}-{p[1]}")
def opened(request, tmp_path, monkeypatch, codec_of):
    """A teacher from a folder, and the family's start marker; its embeddings have rows that no token has."""
    name, tied = request.param
    write_teacher_folder(name, tmp_path, NUM_CODES, tied, PADDING)
    monkeypatch.setattr(loading.FAMILIES[name], "load_codec", lambda *_: codec_of(NUM_CODES))
    monkeypatch.setattr(neutts, "phonemes", lambda text, _: text.upper())
    return loading.load_teacher(TeacherParams(family=name, source=str(tmp_path))), TOKEN_KINDS[name].markers[-1]


def test_labels_begin_after_the_start_of_speech_and_end_with_end(opened):
    teacher, start = opened
    sequence = forced_sequence(teacher, UTTERANCE, Prompt(), prompt_is_target=True)
    assert teacher.tokenizer.convert_ids_to_tokens(sequence.ids[sequence.target_start]) == start
    assert sequence.targets == (3, 20, 0, 7, NUM_CODES)
    assert list(sequence.ids[sequence.target_start + 1 :]) == teacher.layout.to_ids(UTTERANCE.codes)
    targets = collate([sequence], teacher.layout.pad_id).targets[0]
    assert (targets[: sequence.target_start] == NO_TARGET).all()
    assert targets[-1] == NUM_CODES


def test_codes_of_a_prompt_are_labels_where_the_utterance_continues_them(opened):
    teacher, start = opened
    sequence = forced_sequence(teacher, UTTERANCE, PROMPT, prompt_is_target=True)
    continued = () if teacher.family.name == "orpheus" else PROMPT.codes
    assert sequence.targets == (*continued, *UTTERANCE.codes, NUM_CODES)
    assert teacher.tokenizer.convert_ids_to_tokens(sequence.ids[sequence.target_start]) == start
    spoken = sequence.ids[sequence.target_start + 1 :]
    assert list(spoken) == teacher.layout.to_ids((*continued, *UTTERANCE.codes))


def test_padding_is_never_spoken(opened):
    teacher, _ = opened
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight[-PADDING:] = 100.0
        teacher.model.get_output_embeddings().weight[teacher.layout.end_id] = 0.0  # never the likeliest: codes come
    (made,) = generate(teacher.model, teacher.layout, [teacher.prompt_ids("so.", PROMPT)], GREEDY)
    assert made.codes
    assert max(made.codes) < NUM_CODES


def test_a_student_speaks_alike_after_saving(opened, tmp_path):
    teacher, _ = opened
    student = remove_layers(teacher.model, [0, 3])
    with torch.no_grad():
        for weight in student.parameters():
            weight.copy_(weight.half())  # as it will be saved
    prompts, ids = [teacher.prompt_ids("so.", PROMPT)], torch.tensor([forced_sequence(teacher, UTTERANCE, PROMPT).ids])
    with torch.inference_mode():
        logits, before_cut = student(input_ids=ids).logits, teacher.model(input_ids=ids).logits
    spoken = generate(student, teacher.layout, prompts, GREEDY)
    save_model(student, teacher, tmp_path / "student")
    again = teacher.family.load_model(tmp_path / "student")
    assert type(again) is type(teacher.model)
    assert again.config.num_hidden_layers == 2
    assert again.get_input_embeddings().num_embeddings == teacher.model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids).logits, logits)
    assert not torch.equal(logits, before_cut)
    assert generate(again, teacher.layout, prompts, GREEDY) == spoken


def test_a_student_with_a_missing_tensor_is_refused(opened, tmp_path):
    teacher, _ = opened
    state = {k: v.contiguous() for k, v in teacher.model.state_dict().items() if "layers.2.mlp" not in k}
    teacher.model.save_pretrained(tmp_path / "broken", state_dict=state)
    with pytest.raises(InvalidInputError, match=r"3 tensors missing or unexpected, first model\.layers\.2\.mlp"):
        teacher.family.load_model(tmp_path / "broken")
