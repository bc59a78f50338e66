"""Folders of models that lie, lead out, never end or cannot speak: each is refused in one line that names why.

The folder is the bundled teacher's with one thing changed, opened as `slimtts say --model` opens any.
"""

import json
import os
import shutil
import struct
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimtts.teachers.nano import bundle_folder
from slimtts.testing.cosyvoice_folder import write_cosyvoice_folder

pytestmark = pytest.mark.hostile

MEMORY_MIB = 256  # for a folder that lies about its sizes: the honest one holds 16 MiB, 32 in fp32
TIME_S = 100.0  # a template or tokenizer may work for 10 s of processor time, or 60 s on a busy machine
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BILLION = 10**9


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(bundle_folder() / "teacher", tmp_path / "model", dirs_exist_ok=True)


def configured(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def written(name, content):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def parts(folder, index_of=lambda entries: entries, **files):
    """The weights as two parts with an index, which `index_of` changes."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    halves = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for name, held in halves.items():
        save_file({key: tensors[key] for key in held}, folder / name, metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()
    entries = {key: name for name, held in halves.items() for key in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index_of(entries)}))
    return names


def pointed(target):
    """An index whose first tensor is said to lie elsewhere."""

    def change(folder):
        shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
        (folder / "weights.model").write_bytes((folder / WEIGHTS).read_bytes())
        (folder / "deeper").mkdir()
        shutil.copy(folder / WEIGHTS, folder / "deeper" / "outside.safetensors")
        torch.save({}, folder / "weights.bin")
        parts(folder, lambda entries: entries | {min(entries): target.replace("FOLDER", str(folder.parent))})

    return change


def twice(folder):
    names = parts(folder)
    part = folder / "part-1.safetensors"
    tensors = load_file(part)
    save_file(tensors | {names[1]: tensors[names[0]].clone()}, part, metadata={"format": "pt"})


def left_over(folder):
    parts(folder)
    save_file({"model.more": torch.ones(1)}, folder / "part-3.safetensors")


def shifted(folder):
    parts(folder, lambda entries: dict(zip(entries, reversed(list(entries.values())), strict=True)))


def both(folder):
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")


def linked(name, target="secret"):
    def change(folder):
        secret = folder.parent / "secret"
        secret.write_bytes((folder / name).read_bytes() if (folder / name).is_file() else b"a key")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to({"secret": secret}.get(target, target))

    return change


def blobs(folder):
    """A folder that looks like a snapshot of the hub's cache, with blobs that are a link to somebody's files."""
    secret = folder.parent / "home"
    secret.mkdir()
    (secret / "key").write_text("a key")
    repository = folder.parent / "models--a--b"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").symlink_to(secret)
    inside = repository / "snapshots" / ("0" * 40)
    folder.rename(inside)
    (inside / "LICENSE").symlink_to("../../blobs/key")
    return inside


def piped(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def headed(header, length=None, body=b""):
    """A safetensors file of this header."""

    def change(folder):
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(raw) if length is None else length
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + raw + body)

    return change


def tensor(**changes):
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


def valued(name, value, where=-1):
    def change(folder):
        tensors = load_file(folder / WEIGHTS)
        if where is None:
            tensors[name].fill_(value)
        else:
            tensors[name].view(-1)[where] = value
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def silent_layers(folder):
    tensors = load_file(folder / WEIGHTS)
    for name, weight in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def cut(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def templated(text):
    return written("chat_template.jinja", text)


def untemplated(folder):
    (folder / "chat_template.jinja").unlink()


def tokenized(**changes):
    def change(folder):
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def added_token(folder):
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    more = values["added_tokens"][-1] | {"id": 4900, "content": "<|one_more|>"}
    more = [more | {"id": 4822 + i, "content": f"<|more_{i}|>"} for i in range(3)]
    path.write_text(json.dumps(values | {"added_tokens": [*values["added_tokens"], *more]}))


def tokenizer_class(name, **more):
    def change(folder):
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name} | more))

    return change


def large(name, size):
    def change(folder):
        with (folder / name).open("r+b") as stream:
            stream.truncate(size)

    return change


def adapter_alone(folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/llasa"}))
    save_file({"base_model.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def adapter_beside(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/other"}')


def origin(content):
    return written("slimtts.json", content)


def nested(opening, closing, depth=100_000):
    return opening * depth + closing * depth


def grown(times):
    """Each replacement makes a text ten times as long."""
    steps = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10} for _ in range(times)]
    return {"type": "Sequence", "normalizers": steps}


LIES = {
    "num_hidden_layers of a billion": (configured(num_hidden_layers=BILLION), "num_hidden_layers = 1000000000"),
    "num_hidden_layers of 10^30": (configured(num_hidden_layers=10**30), "num_hidden_layers"),
    "num_hidden_layers negative": (configured(num_hidden_layers=-3), "num_hidden_layers = -3"),
    "num_hidden_layers null": (configured(num_hidden_layers=None), "num_hidden_layers = None"),
    "num_hidden_layers of text": (configured(num_hidden_layers="12"), "num_hidden_layers = 12"),
    "num_hidden_layers true": (configured(num_hidden_layers=True), "num_hidden_layers = True"),
    "num_hidden_layers too few": (configured(num_hidden_layers=2), "tensors missing or unexpected"),
    "num_hidden_layers too many": (configured(num_hidden_layers=20), "tensors missing or unexpected"),
    "hidden_size of a billion": (configured(hidden_size=BILLION), "model"),
    "hidden_size of 10^18": (configured(hidden_size=10**18), "model"),
    "hidden_size negative": (configured(hidden_size=-256), "model"),
    "hidden_size null": (configured(hidden_size=None), "model"),
    "intermediate_size of 10^12": (configured(intermediate_size=10**12), "model"),
    "vocab_size of a billion": (configured(vocab_size=BILLION), "model"),
    "vocab_size zero": (configured(vocab_size=0), "model"),
    "heads zero": (configured(num_attention_heads=0), "model"),
    "heads of a billion": (configured(num_attention_heads=BILLION), "model"),
    "key heads zero": (configured(num_key_value_heads=0), "model"),
    "head_dim of a billion": (configured(head_dim=BILLION), "model"),
    "positions of 10^15": (configured(max_position_embeddings=10**15), "max_position_embeddings"),
    "positions negative": (configured(max_position_embeddings=-1), "max_position_embeddings = -1"),
    "labels of a billion": (configured(num_labels=BILLION), "num_labels = 1000000000"),
    "rotary share": (configured(rope_scaling={"rope_type": "linear", "factor": 2, "partial_rotary_factor": BILLION}),
                     "partial_rotary_factor"),
    "rope_theta zero": (configured(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta = 0"),
    "rope_theta of text": (configured(rope_parameters={"rope_type": "default", "rope_theta": "x"}), "rope_theta = x"),
    "rope of an unknown type": (configured(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "model"),
    "rope as a list": (configured(rope_parameters=[1, 2]), "model"),
    "norm without epsilon": (configured(rms_norm_eps=None), "rms_norm_eps = None"),
    "norm with a negative epsilon": (configured(rms_norm_eps=-1), "rms_norm_eps = -1"),
    "activation unknown": (configured(hidden_act="shout"), "model"),
    "tied as text": (configured(tie_word_embeddings="perhaps"), "model"),
    "padding beyond the rows": (configured(pad_token_id=BILLION), "model"),
    "layer types of another depth": (configured(layer_types=["full_attention"]), "model"),
    "another kind": (configured(model_type="mixtral"), "model_type 'mixtral'"),
    "a kind that is a list": (configured(model_type=["llama"]), "model_type"),
    "other weights named": (configured(transformers_weights="weights.model"), "transformers_weights"),
    "a kernel of the hub": (configured(_attn_implementation="somebody/kernel"), "_attn_implementation"),
    "quantised by somebody": (configured(quantization_config={"quant_method": "gptq"}), "quantised by gptq"),
    "quantisation as a list": (configured(quantization_config=[1]), "quantised by nobody known"),
    "config nested": (written("config.json", '{"a": ' + nested("[", "]") + "}"), "config.json"),
    "config nested below the limit": (configured(quantization_config=json.loads(nested("[", "]", 800))), "model"),
    "config of a list": (written("config.json", "[]"), "a list"),
    "config empty": (written("config.json", ""), "config.json"),
    "config of other bytes": (written("config.json", b"\xff\xfe\x00"), "config.json"),
    "config of 5 MB": (written("config.json", json.dumps({"a": "x" * (5 << 20)})), "at most"),
    "header longer than the file": (headed(b"{}", 1 << 40), "a header of"),
    "header of 10^18": (headed(b"{}", 10**18), "a header of"),
    "header that is no JSON": (headed(b"\x80\x04pickle"), "a header that cannot be read"),
    "header nested": (headed(nested(b"[", b"]")), "a header that cannot be read"),
    "header of a list": (headed([1]), "a header that cannot be read"),
    "shape negative": (headed(tensor(shape=[-1, -1]), body=b"0000"), "sizes"),
    "shape of fractions": (headed(tensor(shape=[1.0]), body=b"0000"), "sizes"),
    "shape of 10^30": (headed(tensor(shape=[10**30]), body=b"0000"), "bytes for F32"),
    "type unknown": (headed(tensor(dtype="F1"), body=b"0000"), "F1"),
    "bytes between tensors": (headed(tensor(data_offsets=[4, 8]), body=b"00000000"), "a gap"),
    "bytes behind the tensors": (headed(tensor(), body=b"00000000"), "bytes of tensors"),
    "weights cut": (cut, "bytes of tensors"),
    "weights empty": (written(WEIGHTS, b""), "0 bytes"),
    "weights of 1 TB that are not there": (large(WEIGHTS, 1 << 40), "bytes of tensors"),
    "tokenizer of 100 GB that are not there": (large("tokenizer.json", 100 << 30), "at most"),
}  # fmt: skip

ELSEWHERE = {
    "index out of the folder": (pointed("../outside.safetensors"), "weights in '../outside.safetensors'"),
    "index with a full path": (pointed("FOLDER/outside.safetensors"), "weights in '/"),
    "index into a folder below": (pointed("deeper/outside.safetensors"), "weights in 'deeper/outside.safetensors'"),
    "index to a pickle": (pointed("weights.bin"), "weights in 'weights.bin'"),
    "index to a .model": (pointed("weights.model"), "weights in 'weights.model'"),
    "index to nothing": (pointed("absent.safetensors"), "weights in 'absent.safetensors'"),
    "index in other case": (pointed("Part-1.safetensors"), "weights in 'Part-1.safetensors'"),
    "index around a corner": (pointed("./part-1.safetensors"), "weights in './part-1.safetensors'"),
    "index with a zero byte": (pointed("part-1.safetensors\0"), "weights in"),
    "index to the other part": (shifted, "tensor "),
    "index without a tensor": (lambda f: parts(f, lambda e: dict(list(e.items())[1:])), "in no file"),
    "index of a list": (lambda f: parts(f, list), "no weight_map"),
    "index of numbers": (lambda f: parts(f, lambda e: dict.fromkeys(e, 1)), "weights in '1'"),
    "index nested": (lambda f: (parts(f), (f / INDEX).write_text(nested("[", "]"))), "index.json"),
    "a tensor in two parts": (twice, "holds too"),
    "a part that the index does not name": (left_over, "in no file"),
    "weights beside the weights": (both, "consolidated.safetensors"),
    "parts without an index": (lambda f: (parts(f), (f / INDEX).unlink()), "without model.safetensors.index.json"),
    "link: weights": (linked(WEIGHTS), "a link out of the folder"),
    "link: configuration": (linked("config.json"), "a link out of the folder"),
    "link: tokenizer": (linked("tokenizer.json"), "a link out of the folder"),
    "link: template": (linked("chat_template.jinja"), "a link out of the folder"),
    "link: licence": (linked("LICENSE"), "a link out of the folder"),
    "link: voices": (linked("voices.json"), "a link out of the folder"),
    "link: origin": (linked("slimtts.json"), "a link out of the folder"),
    "link: device": (linked("voices.json", "/dev/zero"), "a link out of the folder"),
    "link: to nothing": (linked("LICENSE", "absent"), "a link that leads nowhere"),
    "link: to itself": (linked("LICENSE", "LICENSE"), "a link that leads nowhere"),
    "link: blobs elsewhere": (blobs, "a link out of the folder"),
    "pipe: weights": (piped(WEIGHTS), "no plain file"),
    "pipe: configuration": (piped("config.json"), "no plain file"),
    "pipe: tokenizer": (piped("tokenizer.json"), "no plain file"),
    "adapter alone": (adapter_alone, "an adapter of somebody/llasa"),
    "adapter beside a model": (adapter_beside, "an adapter of somebody/other"),
}

MUTE = {
    "infinite": (
        valued("model.layers.5.mlp.up_proj.weight", float("inf")),
        "an infinite number in tensor model.layers.5",
    ),
    "minus infinite": (valued("model.norm.weight", float("-inf")), "an infinite number in tensor model.norm"),
    "NaN": (valued("model.embed_tokens.weight", float("nan"), 7), "NaN in tensor model.embed_tokens"),
    "embedding of zeros": (valued("model.embed_tokens.weight", 0, None), "only zeros in tensor model.embed_tokens"),
    "final norm of zeros": (valued("model.norm.weight", 0, None), "only zeros in tensor model.norm"),
    "layers that add nothing": (silent_layers, "only zeros in all 24 outputs"),
    "origin of an unknown family": (origin('{"family": "parrot"}'), "slimtts.json"),
    "origin nested": (origin(nested("[", "]")), "slimtts.json"),
    "origin of numbers": (origin("7"), "slimtts.json"),
    "voices nested": (written("voices.json", nested("[", "]")), "voices.json"),
    "tokens beyond the embedding": (added_token, "4822 embedding rows for token"),
    "tokenizer damaged": (written("tokenizer.json", '{"version": "1.0"'), "tokenizer"),
    "tokenizer of a list": (written("tokenizer.json", "[]"), "tokenizer"),
    "tokenizer nested": (written("tokenizer.json", nested("[", "]")), "tokenizer"),
    "tokenizer of other bytes": (written("tokenizer.json", b"\xff\xfe"), "tokenizer"),
    "tokenizer without a model": (tokenized(model=None), "tokenizer"),
    "tokenizer of an unknown class": (tokenizer_class("EvilTokenizer"), "tokenizer_class EvilTokenizer"),
    "tokenizer with a billion tokens": (
        tokenizer_class("T5Tokenizer", extra_ids=BILLION),
        "tokenizer_class T5Tokenizer",
    ),
    "tokenizer settings of a list": (written("tokenizer_config.json", "[]"), "tokenizer_class"),
    "no chat template": (untemplated, "no chat template"),
}

SAID = "{% for m in messages %}{{ m.content }}{% endfor %}"
ENDLESS = {
    "template: loops in loops": (
        templated("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + SAID),
        "work without end"),
    "template: a text of 10 GB": (templated("{{ 'a' * 10000000000 }}" + SAID), "work without end"),
    "template: a wide text": (templated("{{ 'a'|center(10000000000) }}" + SAID), "work without end"),
    "template: a number without end": (templated("{{ 9 ** (9 ** 9) }}" + SAID), "work without end"),
    "template: 2 MB around the text": (templated("{{ 'a' * 2000000 }}" + SAID), "work without end"),
    "template: itself": (templated("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}" + SAID), "chat template"),
    "template: no template": (templated("{% for %}"), "chat template"),
    "template: without the text": (templated("{{ messages[1].content }}"), "does not hold the text"),
    "template: no messages": (templated("hello"), "chat template"),
    "template: another text": (templated("{{ messages[0].content|upper }}{{ messages[1].content }}"), "chat template"),
    "template: another frame": (templated("{{ messages[0].content|length }}" + SAID), "other words"),
    "template: out of the sandbox": (
        templated("{{ ''.__class__.__mro__[1].__subclasses__() }}" + SAID), "chat template"),
    "tokenizer: a pattern without end": (
        tokenized(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated",
                                 "invert": False}), "tokenizer"),
    "tokenizer: a text that grows": (tokenized(normalizer=grown(12)), "work without end"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*LIES, *ELSEWHERE, *MUTE, *ENDLESS])
def test_a_hostile_folder_is_refused_in_one_line(name, folder, attempt, tmp_path):
    change, reason = (LIES | ELSEWHERE | MUTE | ENDLESS)[name]
    changed = change(folder)
    words = ["say", "the green tiger", "--out", str(tmp_path / "speech.wav")]
    words += ["--model", str(changed if name == "link: blobs elsewhere" else folder)]
    outcome = attempt("cli", words, TIME_S)
    assert outcome.outcome == "refused", outcome
    assert outcome.memory_mib <= (MEMORY_MIB if name in LIES else 1024), outcome
    lines = [line for line in outcome.message.splitlines() if "observed" in line]
    assert len(lines) == 1, outcome
    assert reason in lines[0], outcome
    assert "next:" in lines[0], outcome
    assert not (tmp_path / "speech.wav").exists()


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_no_command_copies_what_a_link_leads_to(command, folder, refused, tmp_path):
    (tmp_path / "key").write_text("a key")
    out = ["--out", str(tmp_path / "made")]
    if command == "quantize":
        (folder / "NOTICE.txt").symlink_to(tmp_path / "key")
        line = refused("cli", ["quantize", "--model", str(folder), "--variant", "int8", *out])
    else:
        cosy = write_cosyvoice_folder(tmp_path / "cosy", 21)
        from slimtts.teachers.cosyvoice2_checkpoint import convert_llm_pt

        student = convert_llm_pt(cosy)
        (cosy / "asset" / "key").symlink_to(tmp_path / "key")
        line = refused("cli", ["export", "--model", str(student), "--teacher", str(cosy), *out])
    assert "a link out of the folder" in line
    assert not (tmp_path / "made").exists()


def packed(path):
    """The archive with every part compressed to less than a hundredth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(64 << 20))


def expanded(path):
    """Tensors of a terabyte over a single number."""
    state = torch.load(path, weights_only=True)
    state["speech_embedding.weight"] = torch.zeros(1).expand(1 << 20, 1 << 18)
    state["llm_decoder.weight"] = torch.zeros(1).expand(1 << 20, 1 << 18)
    torch.save(state, path)


@pytest.mark.parametrize(("damage", "reason"), [(packed, "bytes for 67108864"), (expanded, "larger than the file")])
def test_a_cosyvoice_checkpoint_is_as_large_as_its_file(damage, reason, attempt, tmp_path):
    folder = write_cosyvoice_folder(tmp_path / "cosy", 21)
    damage(folder / "llm.pt")
    outcome = attempt("slimtts.teachers.cosyvoice2_checkpoint:convert_llm_pt", [folder])
    assert outcome.outcome == "refused", outcome
    assert reason in outcome.message
    assert outcome.memory_mib <= MEMORY_MIB, outcome


def test_the_unchanged_folder_speaks(folder, attempt, tmp_path):
    """What the others prove rests on this."""
    outcome = attempt(
        "cli", ["say", "the green tiger.", "--out", str(tmp_path / "s.wav"), "--model", str(folder)], TIME_S
    )
    assert outcome.outcome == "accepted", outcome
    assert (tmp_path / "s.wav").stat().st_size > 10_000


def test_the_same_folder_in_parts_speaks(folder, attempt, tmp_path):
    parts(folder)
    outcome = attempt(
        "cli", ["say", "the green tiger.", "--out", str(tmp_path / "s.wav"), "--model", str(folder)], TIME_S
    )
    assert outcome.outcome == "accepted", outcome
