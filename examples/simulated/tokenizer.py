"""The tokenizer of every simulated gRPC engine, and the archive in which a router fetches it.

SMG applies its chat template, encodes prompts and decodes answers with it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from typing import Any

from tokenizers import AddedToken, Tokenizer

from examples.byte_tokenizer import BOS_ID, EOS_ID, byte_tokenizer, tokenizer_config

_FIXED_DATE = (2026, 1, 1, 0, 0, 0)
IMAGE = "<image>"
_TEMPLATE_WITH_IMAGES = (
    "{% for message in messages %}<s>{{ message['role'] }}: {% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<image>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
_LLAVA: dict[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "vision_feature_select_strategy": "default",
    "vision_config": {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "hidden_size": 32},
}
_CLIP: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "LlavaProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.48, 0.45, 0.40],
    "image_std": [0.26, 0.26, 0.27],
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""A model as small as SMG's own image processing takes it, of the LLaVA kind: two by two patches."""


def encode(text: str) -> list[int]:
    """Token ids of a text, no special ones added."""
    ids: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@functools.cache
def bundle(*, vision: bool = False) -> tuple[bytes, str]:
    """The ZIP archive that GetTokenizer streams, the same for every engine, and its SHA-256 in hex."""
    config: dict[str, Any] = {"model_type": "llama", "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    files = {"tokenizer.json": _tokenizer().to_str(), "tokenizer_config.json": json.dumps(tokenizer_config())}
    if vision:
        seeing = byte_tokenizer()
        seeing.add_special_tokens([AddedToken(IMAGE, special=True)])
        config |= _LLAVA | {"image_token_index": seeing.token_to_id(IMAGE)}
        files["tokenizer.json"] = seeing.to_str()
        files["tokenizer_config.json"] = json.dumps(tokenizer_config() | {"chat_template": _TEMPLATE_WITH_IMAGES})
        files["preprocessor_config.json"] = json.dumps(_CLIP)
    files["config.json"] = json.dumps(config)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, text in files.items():
            writer.writestr(zipfile.ZipInfo(name, _FIXED_DATE), text)
    return archive.getvalue(), hashlib.sha256(archive.getvalue()).hexdigest()


@functools.cache
def _tokenizer() -> Tokenizer:
    return byte_tokenizer()
