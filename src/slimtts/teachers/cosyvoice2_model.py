"""CosyVoice 2's language model with one space of ids: Qwen2 whose head has rows for speech only, and a bias.

Embedding rows: Qwen's text rows, then sos and task_id, then the speech rows (codes, END, one without use, fill).
Importing this file lets transformers' Auto classes open such checkpoints, without code from elsewhere.
"""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2PreTrainedModel

PROMPT_ROWS = 2  # sos, task_id
ROWS_AFTER_CODES = 3  # END, one without use, fill
CODES = 6561


class CosyVoice2Config(Qwen2Config):
    """Qwen2's, with the rows of the speech head; they are the last rows of the embedding table too."""

    model_type = "slimtts_cosyvoice2"

    speech_rows: int = CODES + ROWS_AFTER_CODES

    @property
    def text_rows(self) -> int:
        """Rows of the text embedding, the first of the table."""
        return int(self.vocab_size - self.speech_rows - PROMPT_ROWS)


class CosyVoice2ForCausalLM(Qwen2ForCausalLM):
    """Logits are over the speech rows: row r is the id `text_rows + 2 + r`."""

    config_class = CosyVoice2Config
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: CosyVoice2Config) -> None:
        Qwen2PreTrainedModel.__init__(self, config)  # Qwen2's own would first make a head over all the text
        self.model = Qwen2Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.speech_rows, bias=True)
        self.post_init()


AutoConfig.register(CosyVoice2Config.model_type, CosyVoice2Config)
AutoModelForCausalLM.register(CosyVoice2Config, CosyVoice2ForCausalLM)
