"""CosyVoice 2: published names in and out, literal layouts, and a tiny body through the whole way to a student."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from slimtts.data.manifest import Utterance
from slimtts.decoding.generation import generate, spoken_bias, spoken_head, trained_head
from slimtts.decoding.teacher_forcing import NO_TARGET, bistream_sequence, collate, forced_sequence
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss, signals
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams, TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.scoring.shared_prefix import target_log_probabilities
from slimtts.stages.distill_student import save_model
from slimtts.teachers import loading
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.checkpoint import load_language_model
from slimtts.teachers.cosyvoice2 import CosyVoice2Family
from slimtts.teachers.cosyvoice2_checkpoint import convert_llm_pt, export_llm_pt, read_llm_pt
from slimtts.teachers.cosyvoice2_model import CosyVoice2Config, CosyVoice2ForCausalLM
from slimtts.testing.cosyvoice_folder import write_cosyvoice_folder

LAYERS, WIDTH, CODES = 4, 32, 20
SOS, TASK, FIRST = 290, 291, 292
END, FILL = 312, 314  # ids; as labels 20 and 22
UTTERANCE = Utterance("u", "abc", "anna", (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), 0.5)


class TinyCosyVoice2(CosyVoice2Family):
    """The family with a codec of 20 codes, which only needs a number here."""

    def load_codec(self, source):
        return SimpleNamespace(num_codes=CODES, sample_rate_hz=24_000, frame_rate_hz=25.0)


@pytest.fixture(scope="session")
def cosyvoice(tmp_path_factory):
    """A folder as published, with every tensor name of Qwen2LM."""
    return write_cosyvoice_folder(tmp_path_factory.mktemp("hub") / "CosyVoice2-0.5B", CODES, LAYERS, WIDTH)


@pytest.fixture(scope="session")
def cosy_teacher(cosyvoice):
    """Loaded as the pipeline loads it, from the published folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loading.FAMILIES, "cosyvoice2", TinyCosyVoice2)
        return loading.load_teacher(TeacherParams(family="cosyvoice2", source=str(cosyvoice)))


def letters(teacher, text):
    return teacher.tokenizer.convert_tokens_to_ids(list(text))


def test_a_published_folder_becomes_a_checkpoint_once(cosyvoice, cosy_teacher):
    assert isinstance(cosy_teacher, Teacher) and isinstance(cosy_teacher.model, CosyVoice2ForCausalLM)
    assert cosy_teacher.folder == convert_llm_pt(cosyvoice) and cosy_teacher.folder.parent == cosyvoice.parent
    stamp = (cosy_teacher.folder / "model.safetensors").stat().st_mtime_ns
    assert (convert_llm_pt(cosyvoice) / "model.safetensors").stat().st_mtime_ns == stamp
    assert cosy_teacher.layout.first_code_id == FIRST and cosy_teacher.layout.end_id == END
    assert cosy_teacher.tokenizer.tokenize("a[breath]b<|endofprompt|>") == ["a", "[breath]", "b", "<|endofprompt|>"]
    # Qwen's own come first, then those that CosyVoice adds, in its order.
    assert cosy_teacher.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endofprompt|>", "[mn]"]) == [258, 259, 275]


def test_the_joint_model_equals_the_published_parts(cosyvoice, cosy_teacher):
    state = read_llm_pt(cosyvoice)
    text, codes = letters(cosy_teacher, "ab"), [3, 19]
    embedded = torch.cat([
        state["llm_embedding.weight"][:1], state["llm.model.model.embed_tokens.weight"][text],
        state["llm_embedding.weight"][1:], state["speech_embedding.weight"][codes],
    ])  # fmt: skip
    body = Qwen2ForCausalLM(Qwen2Config.from_pretrained(cosyvoice / "CosyVoice-BlankEN", dtype="float32")).eval()
    body.load_state_dict({n.removeprefix("llm.model."): t for n, t in state.items() if n.startswith("llm.model.")})
    with torch.no_grad():
        hidden = body.model(inputs_embeds=embedded[None]).last_hidden_state
        expected = F.linear(hidden, state["llm_decoder.weight"], state["llm_decoder.bias"])
        ids = cosy_teacher.prompt_ids("ab", Prompt("", (3, 19)))
        torch.testing.assert_close(cosy_teacher.model(torch.tensor([ids])).logits, expected)


def test_prompts_literally(cosy_teacher):
    a, b, c = letters(cosy_teacher, "abc")
    assert cosy_teacher.prompt_ids("ab", Prompt("c", (0, 19))) == [SOS, c, a, b, TASK, FIRST, FIRST + 19]
    assert cosy_teacher.prompt_ids("ab", Prompt()) == [SOS, a, b, TASK]
    assert cosy_teacher.textless_prompt_ids(Prompt("c", (7,))) == [SOS, TASK, FIRST + 7]
    with pytest.raises(InvalidInputError, match="text: observed empty"):
        cosy_teacher.prompt_ids(" ", Prompt())


def test_only_speech_is_a_target(cosy_teacher):
    sequence = forced_sequence(cosy_teacher, UTTERANCE, Prompt("b", (1, 2)))
    batch = collate([sequence], cosy_teacher.layout.pad_id)
    assert batch.targets[0].tolist() == [NO_TARGET] * 7 + [*UTTERANCE.codes, CODES]
    assert sequence.ids[5:9] == (TASK, FIRST + 1, FIRST + 2, FIRST + 4)


def test_bistream_literally(cosy_teacher):
    """Seven text tokens, 22 codes: 5 with 15 and fill, 2 with task_id and the rest."""
    codes = tuple(i % CODES for i in range(22))
    utterance = Utterance("u", "cdefg", "anna", codes[2:], 1.0)
    sequence = bistream_sequence(cosy_teacher, utterance, Prompt("ab", codes[:2]))
    a, b, c, d, e, f, g = letters(cosy_teacher, "abcdefg")
    spoken = [FIRST + code for code in codes]
    assert sequence.ids == (SOS, a, b, c, d, e, *spoken[:15], f, g, TASK, *spoken[15:])
    none = NO_TARGET
    assert sequence.target_start == 0
    assert sequence.targets == (none, none, none, none, none, *codes[:15], 22, none, none, *codes[15:], 20)
    assert len(sequence.ids) == len(sequence.targets)


def test_a_text_of_whole_chunks_closes_with_no_text(cosy_teacher):
    codes = tuple(i % CODES for i in range(17))
    sequence = bistream_sequence(cosy_teacher, Utterance("u", "abcde", "anna", codes, 1.0), Prompt())
    assert sequence.ids[-3:] == (TASK, FIRST + 15, FIRST + 16) and sequence.ids.count(TASK) == 1
    assert sequence.targets[-4:] == (22, 15, 16, 20)


def test_short_speech_has_no_bistream(cosy_teacher, teacher):
    codes = tuple(range(15))
    assert bistream_sequence(cosy_teacher, Utterance("u", "abcde", "anna", codes, 1.0), Prompt()) is None
    assert bistream_sequence(teacher, UTTERANCE, Prompt()) is None


def test_a_share_of_the_pairs_is_bistream(cosy_teacher, teacher):
    def fills(share):
        sampler = PairSampler(cosy_teacher, [UTTERANCE], 200, 1, bistream_share=share)
        return int((next(sampler.from_step(0)).targets == CODES + 2).sum())

    assert fills(0.0) == 0 and fills(1.0) > 0
    with pytest.raises(InvalidInputError, match=r"distill_student.bistream_share: observed 0.5 for family nano"):
        PairSampler(teacher, [UTTERANCE], 200, 1, bistream_share=0.5)


@pytest.mark.parametrize("repetition_aware", [False, True])
def test_only_codes_and_end_are_said(cosy_teacher, repetition_aware):
    decoding = DecodingParams(
        temperature=1.0, top_p=0.8, max_new_tokens=40, batch_rows=4, seed=1, repetition_aware=repetition_aware
    )
    made = generate(cosy_teacher.model, cosy_teacher.layout, [cosy_teacher.prompt_ids("ab", Prompt())] * 4, decoding)
    said = [code for row in made for code in row.codes]
    assert said and all(0 <= code < CODES for code in said)


def test_heads_have_the_bias(cosy_teacher):
    model, layout = cosy_teacher.model, cosy_teacher.layout
    weight, bias = trained_head(model, layout)
    assert torch.equal(weight, model.lm_head.weight) and torch.equal(bias, model.lm_head.bias)
    assert torch.equal(spoken_head(model, layout), weight[: CODES + 1])
    assert torch.equal(spoken_bias(model, layout), bias[: CODES + 1])


def test_logits_of_the_loss_and_of_the_search_are_the_models(cosy_teacher):
    batch = collate([forced_sequence(cosy_teacher, UTTERANCE, Prompt("b", (1, 2)))], cosy_teacher.layout.pad_id)
    with torch.no_grad():
        dense = cosy_teacher.model(batch.ids).logits[batch.is_target]
        made = signals(cosy_teacher.model, cosy_teacher.layout, batch, with_attention=False)
        searched = target_log_probabilities(cosy_teacher.model, cosy_teacher.layout, batch)
    torch.testing.assert_close(made.logits(), dense)
    torch.testing.assert_close(searched, dense[:, : CODES + 1].log_softmax(-1))


def test_prune_heal_save_reload_and_export(cosyvoice, cosy_teacher, tmp_path):
    retained = (0, 1, 3)
    student = remove_layers(cosy_teacher.model, retained)
    sequences = [
        bistream_sequence(cosy_teacher, UTTERANCE, Prompt()),
        forced_sequence(cosy_teacher, UTTERANCE, Prompt()),
    ]
    batch = collate(sequences, cosy_teacher.layout.pad_id)
    loss = HealingLoss(PRESETS["default"], cosy_teacher.layout, cosy_teacher.model, retained)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    totals = []
    for _ in range(3):
        total, terms = loss(student, batch)
        optimizer.zero_grad()
        total.backward()
        totals.append(total.item())
        assert student.lm_head.bias.grad.abs().sum() > 0 and set(terms) >= {"cross_entropy", "skew_kl"}
        optimizer.step()
    assert totals[-1] < totals[0]

    save_model(student, cosy_teacher, tmp_path / "student")
    again = load_language_model(tmp_path / "student")
    assert isinstance(again, CosyVoice2ForCausalLM) and again.config.num_hidden_layers == 3
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float()), name

    out = export_llm_pt(tmp_path / "student", cosyvoice, tmp_path / "export")
    state, qwen = read_llm_pt(out), out / "CosyVoice-BlankEN"
    assert json.loads((qwen / "config.json").read_text())["num_hidden_layers"] == 3
    body, info = Qwen2ForCausalLM.from_pretrained(qwen, output_loading_info=True, dtype="float32")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    own = {n.removeprefix("llm.model."): t for n, t in state.items() if n.startswith("llm.model.")}
    body.load_state_dict(own, strict=True)  # as CosyVoice does
    assert state["llm_decoder.bias"].dtype == torch.float32
    assert torch.equal(state["llm_decoder.bias"], again.lm_head.bias)
    assert torch.equal(own["model.layers.2.mlp.up_proj.weight"], again.model.layers[2].mlp.up_proj.weight)
    assert torch.equal(own["lm_head.weight"], own["model.embed_tokens.weight"])
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {
        "llm.pt", "cosyvoice2.yaml", "flow.pt", "hift.pt", "asset/note.txt",
        *(f"CosyVoice-BlankEN/{n}" for n in ("config.json", "model.safetensors", "vocab.json", "merges.txt")),
        "CosyVoice-BlankEN/tokenizer_config.json",
    }  # fmt: skip


def test_an_unpruned_model_comes_back_bit_for_bit(cosyvoice, tmp_path):
    converted = convert_llm_pt(cosyvoice, tmp_path)
    out = export_llm_pt(converted, cosyvoice, tmp_path / "back")
    before, after = read_llm_pt(cosyvoice), read_llm_pt(out)
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert (out / "flow.pt").stat().st_ino == (cosyvoice / "flow.pt").stat().st_ino
    assert convert_llm_pt(out, tmp_path / "again").is_dir()


def test_a_missing_tensor_is_named(cosyvoice, tmp_path):
    state = read_llm_pt(cosyvoice)
    del state["llm_decoder.bias"]
    (tmp_path / "cv").mkdir()
    torch.save(state, tmp_path / "cv" / "llm.pt")
    with pytest.raises(InvalidInputError, match=r"llm.pt: observed no tensor llm_decoder.bias"):
        convert_llm_pt(tmp_path / "cv")


def test_code_in_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"llm_embedding.weight": Bomb()}, tmp_path / "llm.pt")
    with pytest.raises(InvalidInputError, match=r"llm\.pt"):
        read_llm_pt(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", None])
def test_a_broken_or_missing_file_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "llm.pt").write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        convert_llm_pt(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_a_student_of_another_teacher_is_refused(cosyvoice, tmp_path):
    config = CosyVoice2Config(
        vocab_size=60, speech_rows=CODES + 3, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    with pytest.raises(InvalidInputError, match=r"observed 60 embedding rows; allowed: 315"):
        export_llm_pt(tmp_path / "other", cosyvoice, tmp_path / "out")


def test_the_layout_needs_a_converted_tokenizer_and_its_codec(cosy_teacher, teacher):
    with pytest.raises(InvalidInputError, match="no entry 'cosyvoice2'"):
        CosyVoice2Family().layout(teacher.tokenizer, cosy_teacher.codec)
    with pytest.raises(InvalidInputError, match="observed 20 codes; allowed: 6561"):
        CosyVoice2Family().layout(cosy_teacher.tokenizer, CosyVoice2Family().load_codec(""))
