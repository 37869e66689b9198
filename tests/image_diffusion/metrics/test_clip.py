"""CLIP from a local folder, with a tiny random network made here."""

import sys

import pytest
import torch

from image_diffusion.metrics.clip import ClipExtractor, ClipScorer, clip_score
from image_diffusion.metrics.cmmd import cmmd
from image_diffusion.metrics.evaluate import evaluate_features
from image_diffusion.metrics.extractor import FeatureExtractor
from immiscible_policy.files import file_sha256

IMAGES = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("models") / "CLIP Tiny_patch8"
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": 514,
            "max_position_embeddings": 77,
            "bos_token_id": 512,
            "eos_token_id": 513,
        },
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(path)
    # A vocabulary of single characters, each within a word and at its end, and the two special tokens.
    letters = [chr(33 + i) for i in range(94)] + [chr(161 + i) for i in range(162)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(path)
    return path


def test_an_absent_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ImportError, match=r"CLIP needs the package transformers: pip install -e '.\[images\]'"):
        ClipExtractor(tmp_path)


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="folder must hold a CLIP model"):
        ClipExtractor(tmp_path / "absent")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"config.json and \*.safetensors\), there is none at"):
        ClipExtractor(tmp_path)


def test_broken_weights_are_named(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="does not hold what CLIPVisionModelWithProjection needs"):
        ClipExtractor(tmp_path)


def test_embeddings_are_those_of_the_model(folder):
    from transformers import CLIPModel

    extractor = ClipExtractor(folder)
    assert isinstance(extractor, FeatureExtractor)
    assert (extractor.name, extractor.dim, extractor.canonical) == ("clip-tiny-patch8", 24, False)
    assert extractor.weights_sha256 == file_sha256(folder / "model.safetensors")
    assert "16x16" in extractor.resize
    found = extractor(IMAGES)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    resized = torch.nn.functional.interpolate(IMAGES / 255, (16, 16), mode="bicubic")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        whole = model(torch.tensor([[512, 513]] * 6), (resized - mean) / deviation)
    torch.testing.assert_close(torch.nn.functional.normalize(found), whole.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(extractor(IMAGES[:, :1]), extractor(IMAGES[:, :1].repeat(1, 3, 1, 1)))


def test_cmmd_of_images(folder):
    extractor = ClipExtractor(folder, name="clip-tiny")
    found = evaluate_features(IMAGES[:3], IMAGES[3:], extractor, ("cmmd",), progress=False)
    assert set(found) == {"cmmd_clip-tiny_3"}
    expected = cmmd(extractor(IMAGES[:3]), extractor(IMAGES[3:]))
    assert found["cmmd_clip-tiny_3"].value == pytest.approx(expected, rel=1e-5)
    assert expected > 0


def test_scores_of_captions(folder):
    from transformers import CLIPModel, CLIPTokenizer

    scorer = ClipScorer(folder)
    captions = ["a dog", "two green cars", "sky", "x" * 300, "a", "dogs and cats"]
    scores = scorer(IMAGES, captions)
    assert scores.shape == (6,)
    assert 0 <= float(scores.min()) <= float(scores.max()) <= 100
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    unit = torch.nn.functional.interpolate(IMAGES[1:2].float(), (16, 16), mode="bicubic", antialias=True)
    unit = unit.clamp(0, 255) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.inference_mode():
        tokens = tokenizer(["two green cars"], return_tensors="pt")["input_ids"]
        output = model(tokens, (unit - mean) / deviation)
    cosine = float((output.image_embeds * output.text_embeds).sum())
    assert float(scores[1]) == pytest.approx(100 * max(cosine, 0), abs=1e-3)


def test_the_mean_score_and_its_record(folder):
    scorer = ClipScorer(folder, name="clip-tiny")
    pairs = [(IMAGES[:4], ["a", "b", "c", "d"]), (IMAGES[4:], ["e", "f"])]
    found = clip_score(pairs, scorer, {"guidance": 7.5})
    scores = torch.cat([scorer(*pair) for pair in pairs]).double()
    measurement = found["clipscore_clip-tiny_6"]
    assert measurement.value == pytest.approx(float(scores.mean()))
    assert measurement.standard_error == pytest.approx(float(scores.std()) / 6**0.5)
    assert measurement.record.run == {"guidance": 7.5}
    with pytest.raises(ValueError, match="one string for each of 6 images"):
        scorer(IMAGES, ["a"])
    with pytest.raises(ValueError, match="at least one batch"):
        clip_score([], scorer)


def test_oblong_images_are_cropped_in_the_middle(folder):
    scorer = ClipScorer(folder)
    square = IMAGES[:1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    # What is beyond the middle has no part, up to the filter's reach over the border.
    oblong = torch.cat([square[..., :20], square, square[..., -20:]], 3)
    assert scorer._cropped(oblong).shape == (1, 3, 16, 16)
    inner = scorer._cropped(oblong)[..., 3:-3]
    torch.testing.assert_close(inner, scorer._cropped(square)[..., 3:-3], rtol=0, atol=1e-5)
