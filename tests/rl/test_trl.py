"""TRL's own trainer learns from what the judge finds of completions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nanochat.problems.sets import load
from nanochat.rl.rewards import CompilerReward
from tests.rl.runs import EASY

pytestmark = pytest.mark.long


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_policy_learns_what_passes(tmp_path: Path) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import GRPOConfig, GRPOTrainer

    # Two words of the prompts, and completions of one token each.
    words = ["<s>", "</s>", "<unk>", "true", "false", " true }", " false }", " 0 }", " todo!() }"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=1,
        learning_rate=0.02,
        lr_scheduler_type="constant",
        max_steps=40,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=0,
    )

    with CompilerReward(load(str(EASY)).problems) as reward:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(reward.rows()),
            args=arguments,
        )
        trainer.train()

    name = "rewards/compiler_reward/mean"
    rewards = [line[name] for line in trainer.state.log_history if name in line]
    assert len(rewards) == 40
    assert np.mean(rewards[:3]) < 0.3 < 0.8 < np.mean(rewards[-5:])
