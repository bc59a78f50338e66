"""The one door to a model's folder: what is checked is what is opened, and what comes out says what it should."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slimtts import model_files
from slimtts.decoding.generation import generate_batch
from slimtts.errors import InvalidInputError
from slimtts.model_files import check_inside, hash_model, hash_weights, stored_tensors, unchanged
from slimtts.model_files import model_files as files_of
from slimtts.params import DecodingParams, TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.quantization.folders import write_variant
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.set_search import search_sets
from slimtts.speech import Speaker
from slimtts.storage import files_sha256
from slimtts.teachers import checkpoint, detection, llasa, loading
from slimtts.teachers.checkpoint import load_language_model, load_tokenizer, save_language_model, save_tokenizer
from slimtts.teachers.detection import detect_family
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.tiny import tiny_model, tiny_teacher, tiny_utterances

IDS = torch.tensor([[1, 5, 9, 2, 40, 7]])
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    tiny_model(tied=False).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed(folder, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_plain_folders_hash_is_that_of_its_bytes(folder):
    assert hash_weights(folder) == files_sha256([folder / "model.safetensors"])


def test_hidden_files_change_no_hash_and_are_not_opened(folder):
    weights, model = hash_weights(folder), hash_model(folder)
    for name in ("._model.safetensors", "._config.json", "._tokenizer.json"):
        (folder / name).write_bytes(b"\0\5\x16\7Mac OS X")
    assert (hash_weights(folder), hash_model(folder)) == (weights, model)
    assert load_language_model(folder).config.num_hidden_layers == 4


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "slimtts.json", "voices.json"]
)
def test_the_hash_of_the_model_knows_every_file_that_is_opened(folder, name):
    before = hash_model(folder)
    (folder / name).write_text("another")
    assert hash_model(folder) != before


def test_a_file_that_is_exchanged_between_check_and_opening_is_refused(folder, tmp_path, monkeypatch):
    other = tmp_path / "other"
    tiny_model(tied=False, seed=9).save_pretrained(other)
    opened = AutoModelForCausalLM.from_pretrained

    def exchanged(*args, **named):
        times = (folder / "model.safetensors").stat()
        shutil.copy(other / "model.safetensors", folder / "model.safetensors")
        os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
        return opened(*args, **named)

    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", exchanged)
    with pytest.raises(InvalidInputError, match="files that changed while they were read"):
        load_language_model(folder)


def test_who_writes_into_the_file_later_changes_no_model(folder):
    model = load_language_model(folder)
    before = model(IDS).logits
    path = folder / "model.safetensors"
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(bytes(path.stat().st_size // 2))
    assert torch.equal(model(IDS).logits, before)


def test_a_snapshot_of_the_hubs_cache_is_opened_through_its_links(folder, tmp_path):
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert load_language_model(snapshot).config.num_hidden_layers == 4
    assert len(files_of(snapshot)) == 3


def test_a_linked_folder_is_the_folder_itself(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert load_language_model(tmp_path / "link").config.num_hidden_layers == 4


@pytest.mark.parametrize("blobs", ["a link", "of another name"])
def test_only_the_caches_own_blobs_may_be_linked_to(tmp_path, blobs):
    (tmp_path / "secret").write_text("a key")
    repository = tmp_path / ("models--a--b" if blobs == "a link" else "model")
    snapshot = repository / "snapshots" / "x"
    snapshot.mkdir(parents=True)
    if blobs == "a link":
        (repository / "blobs").symlink_to(tmp_path)
    else:
        (repository / "blobs").mkdir()
        (repository / "blobs" / "secret").write_text("a key")
    (snapshot / "LICENSE").symlink_to("../../blobs/secret")
    with pytest.raises(InvalidInputError, match="a link out of the folder"):
        check_inside(snapshot, snapshot / "LICENSE")


def test_a_head_that_differs_from_its_embedding_is_used_though_the_config_ties_them(tmp_path):
    model = tiny_model(tied=True)
    model.save_pretrained(tmp_path)
    head = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    changed(tmp_path, lambda tensors: tensors.update({"lm_head.weight": head}))
    opened = load_language_model(tmp_path)
    assert opened.config.tie_word_embeddings is False
    assert torch.equal(opened.lm_head.weight, head)
    assert torch.equal(opened.model.embed_tokens.weight, model.model.embed_tokens.weight)
    student = remove_layers(opened, range(4))
    assert torch.equal(student(IDS).logits, opened(IDS).logits)
    save_language_model(student, tmp_path / "student")
    again = load_language_model(tmp_path / "student")
    assert torch.allclose(again.lm_head.weight, head, atol=1e-3)
    assert json.loads((tmp_path / "student" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_that_equals_its_embedding_stays_tied(tmp_path):
    tiny_model(tied=True).save_pretrained(tmp_path)
    changed(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    opened = load_language_model(tmp_path)
    assert opened.config.tie_word_embeddings is True
    assert opened.lm_head.weight.data_ptr() == opened.model.embed_tokens.weight.data_ptr()


def test_every_surgery_is_compared_with_the_model_it_came_from(monkeypatch):
    model = tiny_model()
    built = type(model).load_state_dict

    def lossy(self, state, **named):
        done = built(self, state, **named)
        with torch.no_grad():
            self.model.layers[0].mlp.up_proj.weight.mul_(1.001)
        return done

    monkeypatch.setattr(type(model), "load_state_dict", lossy)
    with pytest.raises(InvalidInputError, match=r"another tensor model\.layers\.0\.mlp\.up_proj\.weight"):
        remove_layers(model, range(4))


def test_a_config_that_changes_the_model_is_noticed_by_its_logits(monkeypatch):
    from slimtts.pruning import surgery

    shortened = surgery.shortened_config

    def forgetful(config, retained):
        short = shortened(config, retained)
        short.rope_parameters = {"rope_type": "default", "rope_theta": 100.0}
        return short

    monkeypatch.setattr(surgery, "shortened_config", forgetful)
    with pytest.raises(InvalidInputError, match="logits that differ by"):
        remove_layers(tiny_model(), [0, 2])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model.layers.3.mlp.down_proj.weight", float("inf"), "an infinite number in tensor model.layers.3"),
        ("lm_head.weight", float("nan"), "NaN in tensor lm_head.weight"),
    ],
)
def test_one_number_that_is_none_is_found_wherever_it_is(folder, name, value, told):
    changed(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(InvalidInputError, match=told):
        load_language_model(folder)


def test_a_head_of_zeros_is_refused_and_a_layer_that_adds_nothing_is_not(folder):
    changed(folder, lambda tensors: tensors["model.layers.2.self_attn.o_proj.weight"].zero_())
    assert load_language_model(folder).config.num_hidden_layers == 4
    changed(folder, lambda tensors: tensors["lm_head.weight"].zero_())
    with pytest.raises(InvalidInputError, match=r"only zeros in tensor lm_head\.weight"):
        load_language_model(folder)


def test_a_model_whose_codes_have_rows_of_zeros_is_refused(tmp_path, monkeypatch):
    teacher = tiny_teacher(tmp_path)
    monkeypatch.setattr(loading.FAMILIES["nano"], "load_codec", lambda *_: teacher.codec)
    params = TeacherParams(family="nano", source=str(tmp_path))
    assert loading.load_teacher(params).num_layers == 4
    codes = slice(teacher.layout.first_code_id, teacher.layout.first_code_id + teacher.layout.num_codes)
    changed(tmp_path, lambda tensors: tensors["lm_head.weight"][codes].zero_())
    with pytest.raises(InvalidInputError, match="only zeros in the head rows of all 16 codes"):
        loading.load_teacher(params)


def test_a_model_that_overflows_is_refused_by_its_logits(folder):
    changed(folder, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    with pytest.raises(InvalidInputError, match="logits: observed not finite"):
        load_language_model(folder)


def broken(teacher):
    model = remove_layers(teacher.model, range(teacher.num_layers))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    return model


def test_no_measurement_of_a_broken_model_becomes_a_number(teacher):
    from dataclasses import replace

    from slimtts.stages.score_layers import forced_batches
    from slimtts.stages.voices import SpeakingTask
    from slimtts.teachers.base import Prompt

    system = replace(teacher, model=broken(teacher))
    batches = forced_batches(teacher, [SpeakingTask(row, Prompt()) for row in tiny_utterances(2)])
    with pytest.raises(InvalidInputError, match="not finite"):
        search_sets(system.model, system.layout, batches, 1)
    with pytest.raises(InvalidInputError, match="what the layers compute: observed not finite"):
        block_influence(system.model, batches)
    greedy = DecodingParams(temperature=0, top_p=1, max_new_tokens=4, batch_rows=1, seed=1)
    with pytest.raises(InvalidInputError, match="logits of the model: observed not finite"):
        generate_batch(system.model, system.layout, [system.prompt_ids("so.", Prompt())], greedy)


def test_a_weight_beyond_fp16_is_refused_before_it_becomes_infinite(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 70_000.0
    with pytest.raises(
        InvalidInputError, match=r"up_proj\.weight: observed values up to 7e\+04; allowed: at most 65504"
    ):
        save_language_model(model, tmp_path)


@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "default", "rope_theta": 1e6}], ids=["llama3", "plain"])
@pytest.mark.parametrize("variant", [None, "int8"])
def test_a_written_config_holds_the_rope_keys_of_transformers_4_and_5(tmp_path, rope, variant):
    model = tiny_model()
    model.config.rope_parameters = dict(rope)
    model = type(model)(model.config).eval()
    save_language_model(model, tmp_path / "student")
    if variant:
        write_variant(tmp_path / "student", variant, tmp_path / "lighter")
    config = json.loads((tmp_path / ("lighter" if variant else "student") / "config.json").read_text())
    assert config["rope_parameters"] == rope
    assert config["rope_theta"] == rope["rope_theta"]
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    assert config["rope_scaling"] == (scaling if rope is LLAMA3 else None)
    opened = load_language_model(tmp_path / ("lighter" if variant else "student"))
    assert opened.config.rope_parameters == rope


def test_a_written_tokenizer_is_named_in_the_words_of_both_versions(tmp_path, teacher):
    teacher.tokenizer.add_special_tokens({"extra_special_tokens": ["<|SPEECH_GENERATION_START|>"]})
    save_tokenizer(teacher.tokenizer, tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(values.get("extra_special_tokens"), list)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == teacher.tokenizer.get_vocab()
    assert again.extra_special_tokens == teacher.tokenizer.extra_special_tokens


@pytest.mark.parametrize(("body", "name"), [("llama", "NeuTTS Nano"), ("qwen3", "NeuTTS 2E")])
def test_a_relative_of_neutts_is_refused_by_its_own_name(tmp_path, body, name):
    folder = write_teacher_folder("neutts", tmp_path, 21)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": body}))
    for opened in (detect_family, Speaker.load):
        with pytest.raises(InvalidInputError, match=f"observed {name}, which is not supported"):
            opened(folder)


@pytest.mark.parametrize(("recipe", "name"), [("cosyvoice.yaml", "CosyVoice 1"), ("cosyvoice3.yaml", "CosyVoice 3")])
def test_another_cosyvoice_is_refused_by_its_own_name(tmp_path, recipe, name):
    folder = write_teacher_folder("cosyvoice2", tmp_path / "cosy", 21)
    (folder / "cosyvoice2.yaml").rename(folder / recipe)
    if name == "CosyVoice 1":
        assert detect_family(folder) == "cosyvoice2", "the first copies of 2 had this name, and Qwen beside it"
        shutil.rmtree(folder / detection.COSYVOICE_QWEN)
    with pytest.raises(InvalidInputError, match=f"observed {name}, which is not supported"):
        detect_family(folder)


@pytest.mark.parametrize("family", ["llasa", "neutts", "orpheus"])
def test_speech_of_a_teachers_folder_without_a_codec_is_refused_as_its_family(tmp_path, family):
    with pytest.raises(
        InvalidInputError, match=f"a model of family {family} without slimtts.json, which names its codec"
    ):
        Speaker.load(write_teacher_folder(family, tmp_path, 21))


def test_a_llasa_folder_is_not_opened_as_nano(tmp_path, codec_of, monkeypatch):
    folder = write_teacher_folder("llasa", tmp_path, 21)
    monkeypatch.setattr(loading.FAMILIES["nano"], "load_codec", lambda *_: codec_of(16))
    with pytest.raises(InvalidInputError, match=r"a token <\|s_16\|>; allowed: 16 codes, as the codec has"):
        loading.load_teacher(TeacherParams(family="nano", source=str(folder)))


@pytest.mark.parametrize(
    "text", ["so it is.", "", "  two  spaces ", "{{ 7 * 7 }} {% if %}", "\u00fc\u4f60 <b>\n'\"", "a" * 400]
)
def test_the_frame_around_a_text_is_what_the_template_renders(teacher, text):
    chat = [
        {"role": "user", "content": f"{llasa.INSTRUCTION}{llasa.TEXT_START}{text}{llasa.TEXT_END}"},
        {"role": "assistant", "content": llasa.SPEECH_START},
    ]
    rendered = teacher.tokenizer.apply_chat_template(
        chat, tokenize=False, continue_final_message=True, date_string=llasa.PINNED_DATE
    )
    before, after = llasa._frame(teacher.tokenizer)
    assert before + text + after == rendered


def test_a_tokenizer_without_a_chat_template_is_refused_when_it_is_opened(tmp_path, codec_of, monkeypatch):
    folder = write_teacher_folder("llasa", tmp_path, 21)
    (folder / "chat_template.jinja").unlink()
    monkeypatch.setattr(loading.FAMILIES["llasa"], "load_codec", lambda *_: codec_of(21))
    with pytest.raises(InvalidInputError, match="observed no chat template") as error:
        loading.load_teacher(TeacherParams(family="llasa", source=str(folder)), with_model=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["llasa", "neutts", "orpheus", "cosyvoice2"])
def test_an_adapter_alone_is_refused_for_every_family(tmp_path, family):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/base"}')
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidInputError, match="an adapter of somebody/base, which is no model by itself"):
        loading.load_teacher(TeacherParams(family=family, source=str(tmp_path), codec=str(tmp_path)))


def test_parts_with_their_index_are_opened_and_hashed_in_order(folder):
    tensors = load_file(folder / "model.safetensors")
    whole = load_language_model(folder)
    entries = {}
    for name, part in (("a", sorted(tensors)[::2]), ("b", sorted(tensors)[1::2])):
        file = f"model-{name}.safetensors"
        save_file({key: tensors[key] for key in part}, folder / file, metadata={"format": "pt"})
        entries |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / model_files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": entries}))
    assert len(stored_tensors(folder)) == len(tensors)
    assert torch.equal(load_language_model(folder)(IDS).logits, whole(IDS).logits)
    assert hash_weights(folder) == files_sha256([folder / "model-a.safetensors", folder / "model-b.safetensors"])


def test_a_folder_at_rest_is_unchanged(folder):
    with unchanged(folder):
        (Path(folder) / "notes.log").write_text("of somebody else")
