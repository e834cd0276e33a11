"""A vision-language model of a few weights, set by hand, behind the chat-completions server of `transformers`.

What is red, by its colour or in so many words, is an apple to it, and everything else a pear. Nothing is downloaded and
nothing trained, and yet it is an ordinary LLaVA, so the server treats it like any other. Run as a program it prints
its address as the first line and answers until the process is ended.
"""

import json
import socket
import sys

import torch
import uvicorn
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager, TimedModel
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

NAME = "seeing-model"
SIZE, PATCH = 16, 8  # pixels
RED, GREEN, BEGIN, END = range(4)  # what a dimension of the hidden state stands for; the others stay empty
DIMENSIONS = 8
# Each answer is one word.
APPLE = json.dumps({"label": "apple", "confidence": 0.9, "why": "red"})
PEAR = json.dumps({"label": "pear", "confidence": 0.9, "why": "not red"})
WORDS = {word: n for n, word in enumerate(
    ["<unk>", "<pad>", "<eos>", "<image>", "<answer>", "red", "green", APPLE, PEAR])}
TEMPLATE = """{% for message in messages %}{% for part in message.content %}{% if part.type == "image" %}<image>
{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}<answer>"""


def make_processor() -> LlavaProcessor:
    words = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>",
        additional_special_tokens=["<answer>"], extra_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    return LlavaProcessor(images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
                          num_additional_image_tokens=1, chat_template=TEMPLATE)


def make_model() -> LlavaForConditionalGeneration:
    """All weights are 0, norms are 1, and then what is seen and read goes straight through to the answer's word."""
    vision = CLIPVisionConfig(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
                              image_size=SIZE, patch_size=PATCH)
    text = LlamaConfig(vocab_size=len(WORDS), hidden_size=DIMENSIONS, intermediate_size=8, num_hidden_layers=1,
                       num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=None,
                       eos_token_id=WORDS["<eos>"], pad_token_id=WORDS["<pad>"], tie_word_embeddings=False)
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=WORDS["<image>"], vision_feature_layer=-1,
        vision_feature_select_strategy="default"))
    weights = model.state_dict()

    def named(end: str) -> torch.Tensor:
        (name,) = [name for name in weights if name.endswith(end)]
        return weights[name]

    for name, weight in weights.items():
        weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    patches = named("patch_embedding.weight")
    patches[RED, 0], patches[RED, 1] = 1.0, -1.0
    patches[GREEN, 0], patches[GREEN, 1] = -1.0, 1.0
    for layer in ("linear_1.weight", "linear_2.weight"):
        named(layer)[:2, :2] = torch.eye(2)
    embedded = named("embed_tokens.weight")
    embedded[WORDS["red"], RED] = embedded[WORDS["green"], GREEN] = embedded[WORDS["<answer>"], BEGIN] = 1.0
    embedded[WORDS[APPLE], END] = embedded[WORDS[PEAR], END] = 1.0
    # Without queries and keys, attention is the mean of all that came before.
    for layer in ("language_model.layers.0.self_attn.v_proj.weight", "language_model.layers.0.self_attn.o_proj.weight"):
        named(layer).copy_(torch.eye(DIMENSIONS))
    head = named("lm_head.weight")
    head[WORDS[APPLE], RED], head[WORDS[PEAR], GREEN] = 10.0, 10.0
    head[WORDS[PEAR], BEGIN] = head[WORDS[APPLE], BEGIN] = 0.1  # one of them, whatever was seen
    head[WORDS["<eos>"], END] = 100.0
    model.load_state_dict(weights)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = WORDS["<eos>"], WORDS["<pad>"]
    return model.eval()


def main() -> None:
    manager = ModelManager(device="cpu")
    # As if it had been loaded: from a file, the server would need one more package.
    manager.loaded_models[f"{NAME}@main"] = TimedModel(make_model(), -1, make_processor())
    state = GenerationState()
    chat = ChatCompletionHandler(model_manager=manager, generation_state=state)
    app = build_server(manager, chat, None, None, None, None, state)  # no other handlers
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}/v1\n")
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
