"""Leave-one-out speech: all ablations in one batch, against `transformers.generate` one utterance at a time.

python benchmarks/generation_speed.py --utterances 4

Both are greedy on the bundled teacher, in one process; prints seconds, agreement and the ratio.
"""

from __future__ import annotations

import argparse
import time
from datetime import date

import torch

from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.generation import generate
from slimtts.nano.card import held_out_rows
from slimtts.params import DecodingParams, TeacherParams
from slimtts.scoring.shared_prefix import with_layers
from slimtts.speech import bundled_voices
from slimtts.stages.evaluate_student import describe_machine
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=112, batch_rows=128, seed=0)


def one_at_a_time(teacher, prompts):
    layout, codes = teacher.layout, []
    forbidden = [i for i in range(layout.first_code_id) if i != layout.end_id]
    for layer in range(teacher.num_layers):
        with with_layers(teacher.model, [i for i in range(teacher.num_layers) if i != layer]):
            for index, one in enumerate(teacher.model.model.layers):
                one.self_attn.layer_idx = index
            for prompt in prompts:
                ids = torch.tensor([prompt])
                out = teacher.model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, suppress_tokens=forbidden,
                    max_new_tokens=GREEDY.max_new_tokens, eos_token_id=layout.end_id, pad_token_id=layout.pad_id,
                )  # fmt: skip
                codes.append(tuple(layout.to_codes(out[0, len(prompt) :].tolist())))
    for index, one in enumerate(teacher.model.model.layers):
        one.self_attn.layer_idx = index
    return codes


def all_in_one_batch(teacher, prompts):
    rows = [p for _ in range(teacher.num_layers) for p in prompts]
    skip = torch.eye(teacher.num_layers, dtype=torch.bool).repeat_interleave(len(prompts), 0)
    return [made.codes for made in generate(teacher.model, teacher.layout, rows, GREEDY, skip)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=4)
    count = parser.parse_args().utterances
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"))
    corpus = load_token_corpus(bundle_folder() / "corpus")
    voices = bundled_voices()
    rows = [corpus.rows[i] for i in held_out_rows(corpus, count)]
    prompts = [teacher.prompt_ids(row["text"], voices[row["voice"]]) for row in rows]
    generate(teacher.model, teacher.layout, prompts[:1], GREEDY)
    timed = {}
    for name, run in (("baseline", one_at_a_time), ("ours", all_in_one_batch)):
        started = time.perf_counter()
        timed[name] = (run(teacher, prompts), time.perf_counter() - started)
    same = sum(a == b for a, b in zip(timed["baseline"][0], timed["ours"][0], strict=True))
    total = count * teacher.num_layers
    baseline_s, ours_s = timed["baseline"][1], timed["ours"][1]
    print(f"{date.today()}, {describe_machine(torch.get_num_threads())}: {total} leave-one-out utterances")
    print(f"transformers.generate, one at a time: {baseline_s:.1f} s; one batch: {ours_s:.1f} s")
    print(f"ratio {baseline_s / ours_s:.1f}x; identical codes {same}/{total}")


if __name__ == "__main__":
    main()
