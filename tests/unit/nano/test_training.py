"""The recipe's trainings: their batches, resuming to the bit, 50 codes a second, and no step tied to a CPU."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch._subclasses import FakeTensorMode
from transformers import AttentionInterface, LlamaForCausalLM

from slimtts.codec.nano_codec import NanoCodec, NanoCodecConfig
from slimtts.data.token_corpus import load_token_corpus
from slimtts.errors import InvalidInputError
from slimtts.nano import codec_training, lm_training, recipe
from slimtts.nano.codec_training import (
    ClipSampler,
    CodecRecipe,
    PhoneHead,
    codec_losses,
    codec_with_stride,
    spectral_loss,
    train_codec,
)
from slimtts.nano.corpus_encoding import encode_corpus
from slimtts.nano.lm_batches import IGNORED, LmRecipe, PairBatches
from slimtts.nano.lm_training import LmWithAuxiliaryHead, teaching_loss, train_language_model
from slimtts.nano.speech_synthesis import read_corpus
from slimtts.nano.tokenizer_training import build_tokenizer
from slimtts.teachers.llasa import prompt_ids, speech_layout

TINY = NanoCodecConfig(
    encoder_channels=16,
    decoder_channels=16,
    spectrum_channels=16,
    encoder_blocks=1,
    decoder_blocks=1,
    spectrum_blocks=1,
)
PHONES = ("pau", "aa", "t")
NUM_CODES = 4096
NANO_CONFIG = lm_training.nano_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """36 utterances of 1.4 s, a tone for each phone of 0.2 s, in two shards."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for shard in range(2):
        rows, clips = [], []
        for number in range(18):
            sounds = rng.integers(len(PHONES), size=7)
            tone = np.repeat(300 + 400 * sounds, 3200)
            clips.append((np.sin(np.cumsum(tone) * 2 * np.pi / 16_000) * 9000).astype(np.int16))
            rows.append(
                {
                    "id": f"u{shard}-{number}",
                    "text": "peter loved the tiger",
                    "voice": ("slt", "rms")[number % 2],
                    "split": "train" if number < 14 else "selection",
                    "num_samples": 7 * 3200,
                    "phones": [(PHONES[s], round(0.2 * (i + 1), 4)) for i, s in enumerate(sounds)],
                    "word_ends_s": [0.4, 0.6, 0.8, 1.4],
                }
            )
        np.save(folder / f"shard-{shard:04d}.npy", np.concatenate(clips))
        (folder / f"shard-{shard:04d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def encoded(corpus, tmp_path_factory):
    """The corpus as codes of a small codec, and a tokenizer."""
    folder = tmp_path_factory.mktemp("encoded")
    torch.manual_seed(0)
    encode_corpus(corpus, NanoCodec(TINY).eval(), folder / "tokens")
    return folder / "tokens", build_tokenizer(folder / "tokenizer", NUM_CODES, 1)


def tiny_llama(vocab_size, layout):
    full = NANO_CONFIG(vocab_size, layout)
    full.update({"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2})
    full.update({"num_key_value_heads": 1, "head_dim": 16})
    return full


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_clip_and_its_labels_are_the_same_piece_of_the_utterance(corpus):
    sampler = ClipSampler(corpus, seed=3, batch_clips=5)
    wave, phones = sampler.batch(7)
    assert wave.dtype == torch.float32 and wave.shape == (5, 32 * 640)
    assert phones.shape == (5, 64)
    # The middle of each 20 ms sounds as its label says: 300, 700 or 1,100 Hz.
    pieces = wave.unflatten(1, (64, 320)).numpy()
    crossings = (np.diff(np.signbit(pieces), axis=-1) != 0).sum(-1) / 2 / 0.02
    order = sorted(PHONES)
    expected = np.array([300 + 400 * PHONES.index(order[p]) for p in range(3)])[phones.numpy()]
    assert np.mean(np.abs(crossings - expected) < 110) > 0.95


def test_flac_shards_and_other_makers_fields_are_read_alike(corpus, tmp_path):
    for index in corpus.glob("*.jsonl"):
        samples = np.load(index.with_suffix(".npy"))
        soundfile.write(tmp_path / f"{index.stem}.flac", samples, 16_000)
        rows = [json.loads(line) | {"group": "plain"} for line in index.read_text().splitlines()]
        (tmp_path / index.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain, packed = list(read_corpus(corpus)), list(read_corpus(tmp_path))
    assert [u for u, _ in plain] == [u for u, _ in packed]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(plain, packed, strict=True))


def test_a_flac_shard_of_another_rate_is_refused(corpus, tmp_path):
    soundfile.write(tmp_path / "shard-0000.flac", np.zeros(4000, dtype=np.int16), 24_000)
    (tmp_path / "shard-0000.jsonl").write_text((corpus / "shard-0000.jsonl").read_text())
    with pytest.raises(ValueError, match="24000 Hz, expected 16000"):
        list(read_corpus(tmp_path))


@pytest.mark.parametrize(("stride", "frames"), [(4, 32), (2, 64)])
def test_every_20_ms_has_a_phone_at_either_code_rate(stride, frames):
    config = replace(TINY, frame_stride=stride)
    assert PhoneHead(config, 5)(torch.randn(3, 16, frames)).shape == (3, 5, 64)


def test_a_stride_that_splits_a_phone_label_is_refused():
    with pytest.raises(InvalidInputError, match="frame_stride"):
        PhoneHead(replace(TINY, frame_stride=3), 5)


def test_a_codec_begun_from_another_stride_hears_a_steady_sound_alike():
    torch.manual_seed(0)
    former = NanoCodec(TINY).eval()
    fast = codec_with_stride(former, 2).eval()
    assert (fast.frame_rate_hz, fast.samples_per_frame) == (50.0, 320)
    steady = torch.ones(1, 16, 32)
    downsample, upsample = former.encoder[2], former.upsample
    torch.testing.assert_close(fast.encoder[2](steady)[..., 0], downsample(steady)[..., 0])
    torch.testing.assert_close(fast.upsample(steady).mean(-1), upsample(steady).mean(-1))
    assert same_weights(codec_with_stride(former, 4), former)
    with pytest.raises(InvalidInputError, match="frame_stride"):
        codec_with_stride(former, 3)


@pytest.mark.parametrize("stride", [4, 2])
def test_a_codec_training_that_was_stopped_ends_with_the_same_bits(corpus, tmp_path, monkeypatch, stride):
    monkeypatch.setattr(codec_training, "CHECKPOINT_STEPS", 2)
    torch.manual_seed(0)
    start, codec_recipe = NanoCodec(TINY), CodecRecipe(steps=5, seed=1, frame_stride=stride, batch_clips=3)
    whole = train_codec(corpus, tmp_path / "whole", codec_recipe, start)
    assert whole.config == replace(TINY, frame_stride=stride)
    (tmp_path / "whole" / "checkpoints" / "step-00000004").rename(tmp_path / "step-00000004")
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    (tmp_path / "step-00000004").rename(tmp_path / "stopped" / "checkpoints" / "step-00000004")
    assert same_weights(train_codec(corpus, tmp_path / "stopped", codec_recipe, start), whole)
    with pytest.raises(InvalidInputError, match="configuration"):  # the same recipe from other weights
        train_codec(corpus, tmp_path / "stopped", codec_recipe, NanoCodec(TINY))


def test_training_makes_the_codec_better(corpus, tmp_path):
    torch.manual_seed(0)
    start = NanoCodec(TINY)
    codec_recipe = CodecRecipe(30, seed=1, frame_stride=2, batch_clips=2, peak_learning_rate=1e-2)
    trained = train_codec(corpus, tmp_path, codec_recipe, start)
    wave, phones = ClipSampler(corpus, 9, 8).batch(0)
    with torch.no_grad():
        before, after = (
            codec_losses(codec, PhoneHead(codec.config, 3), wave, phones)[0]
            for codec in (codec_with_stride(start, 2), trained)
        )
    assert after < 0.8 * before


def test_codes_of_50_a_second_are_labelled_by_10_and_20_ms(corpus, tmp_path):
    torch.manual_seed(0)
    encode_corpus(corpus, NanoCodec(replace(TINY, frame_stride=2)).eval(), tmp_path / "tokens")
    tokens = load_token_corpus(tmp_path / "tokens")
    assert np.diff(tokens.offsets).tolist() == [70] * 36
    utterance = next(u for u, _ in read_corpus(corpus))
    ids = [sorted(PHONES).index(p) for p, _ in utterance.phones]
    assert tokens.phones[:70].tolist() == [[i, i] for i in ids for _ in range(10)]
    assert tokens.words[:70].tolist() == [0] * 20 + [1] * 10 + [2] * 10 + [3] * 30


def test_a_batch_says_which_positions_are_spoken_and_framed(encoded):
    tokens, tokenizer = encoded
    batches = PairBatches(load_token_corpus(tokens), tokenizer, NUM_CODES, LmRecipe(2, 1, tokens_per_step=512))
    batch = next(batches.steps(0))
    assert torch.equal(batch.labels.flatten()[batch.spoken], batch.labels[batch.labels != IGNORED])
    assert torch.equal(batch.words.flatten()[batch.framed], batch.words[batch.words != IGNORED])
    assert len(batch.spoken) == len(batch.framed) + len(batch.ids)  # END has no word


def test_a_language_model_training_that_was_stopped_ends_with_the_same_bits(encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_training, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(lm_training, "nano_config", tiny_llama)
    tokens, _ = encoded
    folder, lm_recipe = tokens.parent / "tokenizer", LmRecipe(5, 1, tokens_per_step=512, auxiliary_layer=2)
    whole = train_language_model(tokens, folder, tmp_path / "whole", lm_recipe)
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    kept = tmp_path / "whole" / "checkpoints" / "step-00000002"
    kept.rename(tmp_path / "stopped" / "checkpoints" / kept.name)
    assert same_weights(train_language_model(tokens, folder, tmp_path / "stopped", lm_recipe), whole)


def test_keys_point_at_the_word_that_is_spoken(encoded):
    tokens, tokenizer = encoded
    batches = PairBatches(load_token_corpus(tokens), tokenizer, NUM_CODES, LmRecipe(2, 1, tokens_per_step=512))
    batch = next(batches.steps(0))
    rows = (batch.framed // batch.ids.shape[1]).tolist()
    keys = batch.keys.flatten()[batch.framed]
    assert torch.equal(batch.ids[rows, keys], batch.words.flatten()[batch.framed])
    # In a pair, the second utterance's frames look at the second text.
    assert len(set(batch.keys[0][batch.keys[0] != IGNORED].tolist())) == 8


def attention_losses(encoded, lm_recipe):
    """Losses of a small model whose taught head sees nothing, then of one that is told the keys."""
    tokens, tokenizer = encoded
    batches = PairBatches(load_token_corpus(tokens), tokenizer, NUM_CODES, lm_recipe)
    AttentionInterface.register("short", lm_training.short_attention)
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama(len(tokenizer), batches.layout))
    model.set_attn_implementation("short")
    trainer = LmWithAuxiliaryHead(model, batches.layout, len(PHONES), lm_recipe).eval()
    return trainer, next(batches.steps(0))


def test_attention_loss_of_a_head_that_sees_nothing_is_the_log_of_what_it_may_see(encoded):
    lm_recipe = LmRecipe(2, 1, tokens_per_step=512, auxiliary_layer=2, attention_layers=(0, 2))
    trainer, batch = attention_losses(encoded, lm_recipe)
    with torch.no_grad():
        for layer in trainer.model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
        losses = trainer(batch)
    visible = batch.framed % batch.ids.shape[1] + 1
    assert float(losses.attention) == pytest.approx(float(visible.log().mean()), rel=1e-4)


def test_attention_loss_is_zero_for_a_head_that_looks_at_the_right_word(encoded):
    trainer, batch = attention_losses(
        encoded, LmRecipe(2, 1, tokens_per_step=512, auxiliary_layer=2, attention_layers=(1,))
    )
    with torch.no_grad():
        trainer(batch)
        right = torch.nn.functional.one_hot(batch.keys.clamp_min(0), batch.ids.shape[1])
        trainer.taught[0].taught_scores = 100.0 * right
        assert float(trainer._attention_loss(batch)) == pytest.approx(0, abs=1e-6)


def test_taught_attention_falls_to_zero_and_leaves_the_plain_recipe_alone(encoded):
    plain = LmRecipe(10, 1, tokens_per_step=512, auxiliary_layer=2)
    trainer, batch = attention_losses(encoded, plain)
    with torch.no_grad():
        losses = trainer(batch)
    assert float(losses.attention) == 0
    assert float(teaching_loss(losses, 0, plain)) == pytest.approx(0.3 * float(losses.auxiliary))
    taught = LmRecipe(10, 1, attention_layers=(1,), attention_weight=2.0)
    losses = losses._replace(attention=torch.tensor(5.0))
    assert float(teaching_loss(losses, 4, taught)) == pytest.approx(0.5 * (0.3 * float(losses.auxiliary) + 10))
    assert float(teaching_loss(losses, 8, taught)) == 0


def test_no_codec_step_is_tied_to_a_cpu():
    moved = NanoCodec(TINY).to("meta")
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"}
    plain_mel = SimpleNamespace(log_mel=lambda wave: wave)  # torchaudio's cannot be traced
    with FakeTensorMode(), torch.device("cuda"):
        wave = torch.randn(2, 20_480)
        loss = spectral_loss(plain_mel, wave, wave)
    assert loss.device.type == "cuda"


def test_no_language_model_step_is_tied_to_a_cpu(encoded):
    tokens, tokenizer = encoded
    lm_recipe = LmRecipe(2, 1, tokens_per_step=512, auxiliary_layer=2, attention_layers=(1,))
    batches = PairBatches(load_token_corpus(tokens), tokenizer, NUM_CODES, lm_recipe)
    real = next(batches.steps(0))
    AttentionInterface.register("short", lm_training.short_attention)
    with FakeTensorMode(), torch.device("cuda"):
        model = LlamaForCausalLM(tiny_llama(len(tokenizer), batches.layout))
        model.set_attn_implementation("short")
        trainer = LmWithAuxiliaryHead(model, batches.layout, 3, lm_recipe).train()
        batch = type(real)(**{name: torch.zeros(t.shape, dtype=t.dtype) for name, t in vars(real).items()})
        losses = trainer(batch)
    assert {loss.device.type for loss in losses} == {"cuda"}


def test_the_recipe_refuses_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "_has_cuda", lambda: False)
    with pytest.raises(InvalidInputError, match="--device"):
        recipe.main(["codec", "--work", str(tmp_path), "--device", "cuda"])


def test_the_recipe_passes_stride_device_and_start(tmp_path, monkeypatch):
    torch.manual_seed(0)
    NanoCodec(TINY).save(tmp_path / "start")
    calls = []
    monkeypatch.setattr(codec_training, "train_codec", lambda *arguments: calls.append(arguments))
    options = {"--work": tmp_path, "--frame-stride": 2, "--codec-steps": 7, "--codec-start": tmp_path / "start"}
    recipe.main(["codec", *(str(item) for pair in options.items() for item in pair)])
    corpus_folder, out, codec_recipe, start, device = calls[0]
    assert (corpus_folder, out) == (tmp_path / "corpus", tmp_path / "codec")
    assert (codec_recipe.steps, codec_recipe.frame_stride, device) == (7, 2, "cpu")
    assert start.config == TINY


def test_phones_are_tokens_that_tell_stress_and_word_starts(tmp_path):
    tokenizer = build_tokenizer(tmp_path / "tokenizer", NUM_CODES, 1, "phones")
    ids = tokenizer.encode("ðə fˈɑks.", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [" ð", "ə", " f", "ˈɑ", "k", "s", "."]
    layout = speech_layout(tokenizer, NUM_CODES)
    pair = prompt_ids(tokenizer, layout, "wˌɪʧ?", "ðə fˈɑks.")
    alone = prompt_ids(tokenizer, layout, "wˌɪʧ?")
    where = next(k for k in range(len(pair)) if pair[k : k + len(ids)] == ids)
    assert pair[:where] + pair[where + len(ids) :] == alone
    assert tokenizer.unk_token_id not in pair
    assert tokenizer.encode("x", add_special_tokens=False) == [tokenizer.unk_token_id]


def test_a_corpus_of_phones_trains_with_taught_attention(corpus, tmp_path, monkeypatch):
    spoken = tmp_path / "corpus"
    spoken.mkdir()
    texts = {"pau": ",", "aa": "ˈɑ", "t": "t"}
    for index in corpus.glob("*.jsonl"):
        shutil.copy(index.with_suffix(".npy"), spoken)
        rows = [json.loads(line) for line in index.read_text().splitlines()]
        for row in rows:
            row["text"] = "".join(texts[p] for p, _ in row["phones"]) + "."
            row["word_ends_s"] = [end for _, end in row["phones"]] + [1.41]
        (spoken / index.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    encode_corpus(spoken, NanoCodec(TINY).eval(), tmp_path / "tokens")
    tokenizer = build_tokenizer(tmp_path / "tokenizer", NUM_CODES, 1, "phones")
    lm_recipe = LmRecipe(2, 1, tokens_per_step=512, auxiliary_layer=2, attention_layers=(0, 1))
    batch = next(PairBatches(load_token_corpus(tmp_path / "tokens"), tokenizer, NUM_CODES, lm_recipe).steps(0))
    keys = batch.keys[0][batch.keys[0] != IGNORED]
    assert (keys.diff() >= 0).all() and keys.diff().max() <= 2  # on from phone to phone, past a full stop at most
    monkeypatch.setattr(lm_training, "nano_config", tiny_llama)
    model = train_language_model(tmp_path / "tokens", tmp_path / "tokenizer", tmp_path / "lm", lm_recipe)
    assert LlamaForCausalLM.from_pretrained(tmp_path / "lm" / "model").config.num_hidden_layers == 3
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_recipe_passes_text_unit_and_attention_layers(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(lm_training, "train_language_model", lambda *arguments, **_: calls.append(arguments))
    recipe.main(["lm", "--work", str(tmp_path), "--attention-layers", "5", "7", "--lm-steps", "9"])
    recipe.main(["lm", "--work", str(tmp_path), "--lm-steps", "9"])
    assert calls[0][3] == LmRecipe(9, 1, attention_layers=(5, 7))
    assert calls[1][3] == LmRecipe(9, 1)
