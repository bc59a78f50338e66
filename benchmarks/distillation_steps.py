"""The ways to take a distillation step that `distillation_speed` compares, and the models they take it on."""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.true_sizes import SIZES
from slimtts.data.manifest import Utterance
from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.teacher_forcing import ForcedSequence, forced_sequence
from slimtts.distill import losses
from slimtts.distill.acceleration import accelerated, allow_tf32, compiled_chunk_gradient, hold_linears_in
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.teacher_cache import TeacherCache, TeacherIdentity
from slimtts.distill.training import CLIP_NORM, make_optimizers, mixed_precision, multiplies_bf16
from slimtts.params import TeacherParams, load_params
from slimtts.pruning.surgery import remove_layers
from slimtts.stages.distill_student import set_attention
from slimtts.teachers.base import Prompt
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder

ROOT = Path(__file__).parent.parent
PRESET, RATE = PRESETS["default"], 1e-4
# What a step's attention depends on.
KNOBS = {
    batching: load_params(ROOT / "params.yaml").distill_student.model_copy(update={"packed_row_tokens": row_tokens})
    for batching, row_tokens in (("sorted", 0), ("packed", 1024))
}
CODES_A_SECOND = {"llasa-1b": 50, "cosyvoice2": 25}


class Nano:
    """The bundled teacher and its corpus."""

    retained = (0, 1, 2, 4, 6, 11)

    def __init__(self):
        self.teacher = load_teacher(TeacherParams(family="nano", source="bundled"))
        self.layout = self.teacher.layout

    def make_teacher(self, device):
        return copy.deepcopy(self.teacher.model).to(device)

    def sequences(self, rng, tokens):
        """Drawn pairs of at least so many tokens."""
        corpus = load_token_corpus(bundle_folder() / "corpus")
        by_voice = {}
        for index, row in enumerate(corpus.rows):
            by_voice.setdefault(row["voice"], []).append(index)
        drawn = []
        while sum(len(s.ids) for s in drawn) < tokens:
            target = int(rng.integers(len(corpus.rows)))
            prompt = int(rng.choice(by_voice[corpus.rows[target]["voice"]]))
            said, spoken = ((corpus.rows[i]["text"], tuple(corpus.codes_of(i).tolist())) for i in (target, prompt))
            drawn.append(self.sequence(said, spoken, corpus.rows[target]["voice"]))
        return drawn

    def sequence(self, said, spoken, voice):
        utterance = Utterance(id="", text=said[0], voice=voice, codes=said[1], duration_s=1.0)
        return forced_sequence(self.teacher, utterance, Prompt(spoken[0], spoken[1], voice), True)


class TrueSize:
    """Random weights of a published shape, and utterances of about five seconds."""

    def __init__(self, name):
        self.size, self.codes_a_second = SIZES[name](), CODES_A_SECOND[name]
        self.layout = self.size.layout
        self.retained = tuple(range(0, self.size.config.num_hidden_layers, 2))

    def make_teacher(self, device):
        torch.manual_seed(0)
        with device:
            # A copy: a model's attention is written into its configuration, and the next model must not inherit it.
            return AutoModelForCausalLM.from_config(copy.deepcopy(self.size.config), dtype=torch.float32).eval()

    def sequences(self, rng, tokens):
        """Drawn pairs of at least so many tokens."""
        drawn = []
        while sum(len(s.ids) for s in drawn) < tokens:
            seconds = np.clip(rng.lognormal(np.log(5), 0.4, 2), 2, 12)
            codes = rng.integers(0, self.layout.num_codes, int(self.codes_a_second * seconds.sum())).tolist()
            text = rng.integers(0, 1000, int(rng.integers(30, 90))).tolist()
            targets = (*codes, self.layout.num_codes)
            drawn.append(ForcedSequence((*text, *self.layout.to_ids(codes)), len(text) - 1, targets))
        return drawn


class Step:
    """One way to take a training step; `needs` names a package that may be missing."""

    needs = ""

    def __init__(self, model, device, batches, cache_folder=None):
        self.model, self.device, self.batches, self.layout = model, device, batches, model.layout
        self.teacher = model.make_teacher(device).requires_grad_(False)
        self.student = remove_layers(self.teacher, model.retained).requires_grad_(True).train()
        self.stack, self.cache_folder = ExitStack(), cache_folder
        self.prepare()
        self.optimizers = self.make_optimizers()

    def prepare(self):
        """What is done once."""
        allow_tf32(self.device, allowed=False)  # the setting is the process's, and ours changes it

    def make_optimizers(self):
        """Those of torch."""
        made = make_optimizers(self.student, "muon")
        matrices = made["muon"].param_groups[0]["params"]
        return made | {"muon": torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")}

    @property
    def is_compiled(self):
        """Whether a new length may still cost a compilation: then every batch is met before time is taken."""
        return self.device.type == "cuda"

    def precision(self):
        return mixed_precision(self.device)

    def loss(self, batch):
        """The loss of a batch on the device."""
        raise NotImplementedError

    def __call__(self, batch):
        batch = batch.to(self.device)
        with self.precision():
            loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP_NORM)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = RATE
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Plain(Step):
    """Dense losses over the whole vocabulary, in fp32."""

    batching = "drawn"

    def precision(self):
        return nullcontext()

    def head_rows(self, batch):
        """Targets as rows of the full output head."""
        first = self.layout.first_code_id - self.layout.first_head_id
        end = self.layout.end_id - self.layout.first_head_id
        targets = batch.targets[batch.is_target]
        return torch.where(targets == self.layout.num_codes, end, targets + first)

    def loss(self, batch):
        with torch.no_grad():
            taught = self.teacher(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        said = self.student(input_ids=batch.ids, use_cache=False, output_hidden_states=True)
        mask = batch.is_target
        logits_s, logits_t = said.logits[mask], taught.logits[mask]
        matches = losses.dynamic_matches(list(self.model.retained), self.teacher.config.num_hidden_layers)
        latent = torch.stack([
            losses.relative_squared(s, taught.hidden_states[m + 1], mask)
            for s, m in zip(said.hidden_states[1:], matches, strict=True)
        ]).mean()  # fmt: skip
        total = PRESET.cross_entropy * losses.cross_entropy(logits_s, self.head_rows(batch))
        return total + PRESET.skew_kl * losses.skew_kl(logits_s, logits_t) + PRESET.latent * latent


class PlainBf16(Plain):
    """The same under autocast to bf16, where the device multiplies it."""

    def precision(self):
        return mixed_precision(self.device)


class TrlGkd(PlainBf16):
    """TRL's generalised Jensen-Shannon divergence of both models' logits."""

    needs = "trl.experimental.gkd"

    def prepare(self):
        from trl.experimental.gkd import GKDTrainer

        super().prepare()
        self.divergence = GKDTrainer.generalized_jsd_loss

    def loss(self, batch):
        with torch.no_grad():
            taught = self.teacher(input_ids=batch.ids, use_cache=False).logits
        said = self.student(input_ids=batch.ids, use_cache=False).logits
        return self.divergence(said, taught, labels=batch.targets, beta=0.5)


class LigerJsd(PlainBf16):
    """Liger's fused linear Jensen-Shannon divergence, as TRL uses it: whole vocabulary, in chunks."""

    needs = "liger_kernel.chunked_loss"

    def prepare(self):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        super().prepare()
        self.fused = LigerFusedLinearJSDLoss(0.5, 0.5, compiled=self.device.type == "cuda")

    def loss(self, batch):
        mask = batch.is_target
        with torch.no_grad():
            taught = self.teacher.model(input_ids=batch.ids, use_cache=False).last_hidden_state[mask]
        said = self.student.model(input_ids=batch.ids, use_cache=False).last_hidden_state[mask]
        heads = (self.student.get_output_embeddings().weight, self.teacher.get_output_embeddings().weight)
        dtype = torch.bfloat16 if multiplies_bf16(self.device) else said.dtype
        s, w_s, t, w_t = (x.to(dtype) for x in (said, heads[0], taught, heads[1]))
        return self.fused(s, w_s, t, w_t, self.head_rows(batch))


class Ours(Step):
    """The pipeline's step with its defaults for this device."""

    batching = "sorted"
    compiled = recomputed = cached = False

    @property
    def is_compiled(self):
        """As `compile: auto`, or on."""
        return self.compiled or self.device.type == "cuda"

    def prepare(self):
        compiled = self.is_compiled
        allow_tf32(self.device)
        for model, is_trained in ((self.teacher, False), (self.student, True)):
            set_attention(model, is_trained, KNOBS[self.batching], PRESET)
        if multiplies_bf16(self.device):
            hold_linears_in(self.teacher, torch.bfloat16)
        of_chunk = {"of_chunk": compiled_chunk_gradient()} if compiled else {}
        self.healing = HealingLoss(PRESET, self.layout, self.teacher, self.model.retained, **of_chunk)
        self.stack.enter_context(accelerated(self.student, compiled, self.recomputed))
        self.stack.enter_context(accelerated(self.teacher, compiled, recomputed=False))
        if self.cached:
            identity = TeacherIdentity("", tuple(self.healing.matches), (0, 0, 0))
            self.healing.memory = TeacherCache(Path(self.cache_folder), identity)
            with torch.no_grad(), self.precision():
                for batch in self.batches:
                    self.healing.memory.recall(batch.to(self.device), self.healing._hear)

    def make_optimizers(self):
        """Those of the pipeline."""
        return make_optimizers(self.student, "muon")

    def loss(self, batch):
        return self.healing(self.student, batch)[0]


class OursCompiled(Ours):
    """compile: on."""

    compiled = True


class OursRecomputed(Ours):
    """activation_checkpointing: true."""

    recomputed = True


class OursPacked(Ours):
    """packed_row_tokens."""

    batching = "packed"


class OursCached(Ours):
    """teacher_cache, with every row found."""

    cached = True


STEPS = {
    "plain, fp32": Plain,
    "plain, bf16": PlainBf16,
    "TRL GKD loss": TrlGkd,
    "Liger fused JSD": LigerJsd,
    "ours": Ours,
    "ours, compile": OursCompiled,
    "ours, activation_checkpointing": OursRecomputed,
    "ours, packed": OursPacked,
    "ours, teacher cached": OursCached,
}
